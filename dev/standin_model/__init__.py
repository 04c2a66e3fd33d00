"""A stand-in for the model: an OpenAI-compatible HTTP server that understands a few plain sentences.

It lets a person try the product without a key, and drives tests over the real wire. It is never packaged, and keeps
nothing of a conversation: every answer comes from the request alone. `docs/stand-in-model.md` lists the sentences, the
faults and the control routes.

    server -> desk -> responses, chat_completions -> wire   how it travels
                   -> faults -> failures                    how it fails
                   -> planning -> scripts -> sentences      what it answers
"""

from .client import StandIn
from .server import create_app, running

__all__ = ["StandIn", "create_app", "running"]

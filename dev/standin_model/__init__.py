"""Stand in for the model: an OpenAI-compatible HTTP server that understands a few plain sentences.

With it a developer tries taskchat without a key, and tests send real HTTP. It is never packaged. It stores nothing of a
conversation: every answer comes from the request alone. `docs/stand-in-model.md` lists the sentences, the faults and
the control routes.

    server -> handler -> responses, chat_completions -> wire   reads requests and writes responses
                      -> faults -> failures -> stream          fails on demand, streams
                      -> planning -> script, tasks             chooses the answer
"""

from .client import StandIn
from .server import create_app, running

__all__ = ["StandIn", "create_app", "running"]

"""The public MCP conformance suite against the MCP door, as `make conformance` runs it. Never packaged.

`__main__.py` runs it · `app.py` its doors · `fixtures.py` the tools it expects · `scenarios.py` what applies
"""

from dev import state
from dev.tokens import Issuer


def issuer() -> Issuer:
    """Who signs the tokens: the runner, which tells the doors the public key, and the doors' client have one key."""
    return Issuer.stored(state.directory() / "conformance" / "issuer.pem")

"""Run the public MCP conformance suite against the MCP endpoint (`make conformance`). Never packaged.

`__main__.py` runs it · `app.py` the two endpoints · `fixtures.py` the suite's own tools · `scenarios.py` what applies
"""

from dev import state
from dev.tokens import Issuer


def issuer() -> Issuer:
    """Return the issuer of the tokens. The command and the server it starts read the same key."""
    return Issuer.stored(state.directory() / "conformance" / "issuer.pem")

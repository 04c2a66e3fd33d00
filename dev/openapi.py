"""`make openapi`: writes the chat API's description to docs/openapi.json."""

import json

from chat.app import app
from dev import state


def main() -> None:
    """Write it."""
    path = state.ROOT / "docs" / "openapi.json"
    path.write_text(json.dumps(app.openapi(), indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

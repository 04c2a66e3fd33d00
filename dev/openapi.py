"""Write the chat API's description to docs/openapi.json (`make openapi`)."""

import json

from chat.app import app
from dev import state


def main() -> None:
    """Write the file."""
    path = state.ROOT / "docs" / "openapi.json"
    path.write_text(json.dumps(app.openapi(), indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

"""Name the revision of the schema that this code needs."""

from typing import Final

NEEDED: Final = "0007"
"""The newest file in `migrations/versions/`, which is not deployed with this code. Raise it with each migration."""

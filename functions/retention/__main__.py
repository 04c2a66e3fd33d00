"""Delete old rows once from this machine: `RETENTION_DATABASE_URL=… RETENTION_DAYS=365 python -m retention`."""

import sys

from retention.app import delete_old_rows

sys.exit(0 if delete_old_rows(lambda: True).is_finished else 1)

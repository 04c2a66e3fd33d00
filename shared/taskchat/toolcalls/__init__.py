"""Tool calls: on whose behalf, in which transaction, with which record and audit line."""

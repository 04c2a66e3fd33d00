"""Tool calls: the caller, the transaction, the record and the audit line of each."""

"""Conversations: their tables, the lease that one turn holds, a turn's begin and end, and its history."""

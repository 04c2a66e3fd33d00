"""The events of a turn, in the protocols that clients speak."""

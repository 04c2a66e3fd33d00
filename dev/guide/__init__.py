"""docs/your-own-tools.md as a list of steps, and its run in a copy of the checkout (`make guide`)."""

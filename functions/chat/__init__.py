"""The chat Lambda: one route, one turn, one agent."""

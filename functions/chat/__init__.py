"""The chat Lambda: one route, one turn, one agent. All of it is imported at once, in the way that costs least."""

from taskchat import imports

with imports.fast():
    from chat import app as app

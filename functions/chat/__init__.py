"""The chat Lambda: the chat route and the health check. Everything is imported here, within `imports.fast()`."""

from taskchat import imports

with imports.fast():
    from chat import app as app

"""The domain: tasks. Replace this package to make the service yours (docs/your-own-tools.md)."""

from taskchat.tasks.tools import toolset as toolset

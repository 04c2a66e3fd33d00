"""Test the task tools, and describe tasks for the engine's tests. Replace it together with `taskchat.tasks`."""

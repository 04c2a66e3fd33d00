"""The tests of tasks themselves, and tasks as the engine's tests see them. Replace it with `taskchat.tasks`."""

"""The operator's commands: they read the logs and the database of a deployment. No artifact holds them."""

"""What both functions share: settings, identity, the database and the five tools."""

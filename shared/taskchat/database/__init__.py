"""The database: one engine, transactions on behalf of one person, column types, a driver that pipelines."""

"""The database: one engine, transactions on behalf of one user, column types, and statements sent together."""

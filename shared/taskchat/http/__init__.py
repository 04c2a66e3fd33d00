"""HTTP: events of API Gateway, tokens, middleware, problem responses."""

"""Between an HTTP request and the rest: gateway events, who is calling, middleware, problem responses."""

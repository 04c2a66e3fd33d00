"""Give the development server an authorization server: a real Better Auth, which the first request to it starts.

MCP clients without a token find it, register themselves, and send the developer to its two pages. It answers at the
development server's own address, so that its tokens have the same issuer as the development token (decision 32).

`server.py` Better Auth in a process of its own · `routes.py` its paths and the two pages
"""

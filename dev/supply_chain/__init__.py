"""Find secrets in the repository, and locked packages that are vulnerable or withdrawn. Never packaged.

`__main__.py` runs it · `secrets.py` tree and history · `advisories.py` the locks · `exceptions.toml` accepted findings
"""

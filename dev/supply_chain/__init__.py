"""What is in the repository that should not be, and what is locked that should not be used. Never packaged.

`__main__.py` runs it · `secrets.py` tree and history · `advisories.py` the locks · `exceptions.toml` what is known of
"""

"""Build and run each of examples/ against the local server (`make examples`). Never packaged.

`__main__.py` runs them in their order · `generated.py` lints the description and generates clients from it
`scripts.py` runs the programs · `pages.py` builds the pages and takes turns in a browser · `running.py` shared steps
`tools/` the linter with its rules, and older versions of Node.js
"""

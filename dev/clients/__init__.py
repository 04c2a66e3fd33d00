"""Run the protocols' own clients against the local server (`make clients`). Never packaged.

`__main__.py` runs them · `ag_ui.mjs` AG-UI's client · `ai_sdk.mjs` the AI SDK's, by version · `common.mjs` shared steps
`read.mjs` reads streams from a file
"""

"""The retention Lambda function: it deletes old rows. This module imports all of it, at the lowest cost."""

from taskchat import imports

with imports.fast():
    from retention import app as app

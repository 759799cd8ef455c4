"""`python -m saferestore.cli`, the same as `saferestore`."""

from .app import app

app()

"""`python -m clachan.server init|serve`: what `clachan controller` runs."""

from clachan.server.command import app

app()

"""The command `clachan-lake`."""

from clachan_lake.cli.main import main

__all__ = ["main"]

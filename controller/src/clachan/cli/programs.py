"""Ansible's commands, found beside this Python or on the path."""

import shutil
import sys
from pathlib import Path

from clachan.cli.errors import CommandError


def find_program(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise CommandError(
            f"command {name}: not found, expected ansible-core to be installed: pip install 'clachan[agent]'"
        )
    return found

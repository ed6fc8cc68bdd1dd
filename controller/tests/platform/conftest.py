"""Platforms of their own for tests, with modules as Ansible runs them.

A home lies in a short folder below /tmp, as a unix socket's path has at most 107 bytes.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from clachan.cli import platform_reset

ROOT = pathlib.Path(__file__).resolve().parents[3]
Module = Callable[..., dict[str, Any]]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="this machine cannot: make users, as this is not root")


@pytest.fixture
def folder() -> Iterator[pathlib.Path]:
    """A short folder that every user may enter."""
    made = pathlib.Path(tempfile.mkdtemp(prefix="clachan-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def home(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Where a home may come to be; what came to be is removed as `clachan reset` does it."""
    path = folder / "h"
    yield path
    if path.exists() and platform_reset.check(path):
        platform_reset.remove(path)


@pytest.fixture(scope="session")
def collections(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder in which Ansible finds this checkout by the collection's name."""
    path = tmp_path_factory.mktemp("collections")
    (path / "ansible_collections" / "clachan").mkdir(parents=True)
    (path / "ansible_collections" / "clachan" / "platform").symlink_to(ROOT)
    return path


@pytest.fixture
def module(collections: pathlib.Path) -> Module:
    """`module("slots", home=..., count=2, check=True)` runs a module as Ansible does and gives its result."""

    def run(name: str, /, check: bool = False, **arguments: object) -> dict[str, Any]:
        document = {"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check, "_ansible_diff": True}}
        process = subprocess.run(
            [sys.executable, "-m", f"ansible_collections.clachan.platform.plugins.modules.{name}"],
            input=json.dumps(document, default=str),
            env={**os.environ, "PYTHONPATH": str(collections)},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert process.stdout, process.stderr
        result: dict[str, Any] = json.loads(process.stdout)
        return result

    return run

"""The module `slots`: users and directories of a node."""

import pathlib
import pwd
import stat
import subprocess

import pytest
from clachan.cli.platform_processes import slot_users

from .conftest import Module, needs_root


def tree(home: pathlib.Path) -> dict[str, tuple[str, str]]:
    """Path -> mode and owner."""
    found = {}
    for path in sorted((home / "slots").rglob("*")):
        status = path.lstat()
        found[str(path.relative_to(home / "slots"))] = (
            oct(stat.S_IMODE(status.st_mode)),
            pwd.getpwuid(status.st_uid).pw_name,
        )
    return found


@needs_root
@pytest.mark.root
def test_users_and_directories_as_root(module: Module, home: pathlib.Path) -> None:
    module("home", path=home, source="x")
    planned = module("slots", home=home, count=2, check=True)
    assert planned["changed"]
    assert not slot_users(home)
    first = module("slots", home=home, count=2)
    assert first["users"] == planned["users"] == [user.pw_name for user in slot_users(home)]
    assert all(user.pw_shell.endswith("nologin") for user in slot_users(home))
    assert tree(home) == {
        path: how
        for slot, user in zip(("s000", "s001"), first["users"], strict=True)
        for path, how in {
            slot: ("0o750", "root"),
            f"{slot}/etc": ("0o750", "root"),
            f"{slot}/log": ("0o750", "root"),
            f"{slot}/var": ("0o700", user),
        }.items()
    }
    again = module("slots", home=home, count=2)
    assert (again["changed"], again["changes"]) == (False, [])
    more = module("slots", home=home, count=3)
    assert more["users"][:2] == first["users"]
    assert len(slot_users(home)) == 3
    assert module("slots", home=home, count=1)["changed"] is False
    assert len(slot_users(home)) == 3


@needs_root
@pytest.mark.root
def test_a_foreign_user_of_that_name_is_refused(module: Module, home: pathlib.Path) -> None:
    module("home", path=home, source="x")
    name = module("slots", home=home, count=1, check=True)["users"][0]
    subprocess.run(["useradd", "--system", "-d", "/nonexistent", name], check=True)
    try:
        result = module("slots", home=home, count=1)
        assert result["msg"] == f"user {name}: has the home directory /nonexistent, expected {home}/slots/s000/var"
    finally:
        subprocess.run(["userdel", name], check=True)


@needs_root
@pytest.mark.root
def test_a_link_in_place_of_a_slots_directory_is_refused(module: Module, home: pathlib.Path) -> None:
    module("home", path=home, source="x")
    module("slots", home=home, count=1)
    (home / "slots/s000/var").rmdir()
    (home / "slots/s000/var").symlink_to("/etc")
    result = module("slots", home=home, count=1)
    assert result["msg"] == f"path {home}/slots/s000/var: not a directory, expected one"
    assert pathlib.Path("/etc").stat().st_uid == 0

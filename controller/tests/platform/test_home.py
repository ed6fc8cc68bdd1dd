"""The module `home`: a directory is made a Clachan home, or refused."""

import hashlib
import io
import json
import os
import pathlib
import socket
import stat
import tarfile

import pytest

from .conftest import Module, needs_root


def artifact(folder: pathlib.Path, files: dict[str, bytes], alter: str = "") -> pathlib.Path:
    """A collection's artifact; the content of the file `alter` does not match its manifest."""
    listing = {
        "files": [{"name": ".", "ftype": "dir", "chksum_sha256": None}]
        + [
            {"name": name, "ftype": "file", "chksum_sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        ]
    }
    listed = json.dumps(listing).encode()
    manifest = json.dumps({"file_manifest_file": {"chksum_sha256": hashlib.sha256(listed).hexdigest()}}).encode()
    path = folder / "artifact.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {"MANIFEST.json": manifest, "FILES.json": listed, **files}.items():
            data = content + b"!" if name == alter else content
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
    return path


def mode(path: pathlib.Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_home_is_made_once(module: Module, home: pathlib.Path) -> None:
    planned = module("home", path=home, controller_host="127.0.0.1", source="x", check=True)
    assert planned["changed"]
    assert not home.exists()
    first = module("home", path=home, controller_host="127.0.0.1", source="x")
    assert first["changed"]
    assert first["archive_needed"]
    assert first["home"] == str(home)
    assert first["root"] == (os.geteuid() == 0)
    assert not first["joined"]
    assert mode(home) == 0o755
    assert mode(home / "controller") == mode(home / "node") == mode(home / "supervisor") == 0o700
    assert json.loads((home / "settings.json").read_text()) == {"clachan_home": 1, "controller_port": first["port"]}
    again = module("home", path=home, controller_host="127.0.0.1", source="x")
    assert not again["changed"]
    assert again["port"] == first["port"]


def test_modes_are_set_right_again(module: Module, home: pathlib.Path) -> None:
    module("home", path=home, source="x")
    (home / "controller").chmod(0o777)
    (home / "log").rmdir()
    result = module("home", path=home, source="x")
    assert result["changes"] == [str(home / "controller"), str(home / "log")]
    assert mode(home / "controller") == 0o700


def test_a_taken_port_is_passed_over(module: Module, home: pathlib.Path) -> None:
    wanted = module("home", path=home, controller_host="127.0.0.1", source="x", check=True)["port"]
    with socket.socket() as other:
        other.bind(("127.0.0.1", wanted))
        other.listen()
        assert module("home", path=home, controller_host="127.0.0.1", source="x")["port"] == wanted + 1
    assert module("home", path=home, controller_host="127.0.0.1", source="x")["port"] == wanted + 1
    assert module("home", path=home, controller_host="127.0.0.1", controller_port=2000, source="x")["port"] == 2000


def test_somebody_elses_directory_is_refused(module: Module, home: pathlib.Path) -> None:
    home.mkdir()
    (home / "thesis.txt").write_text("mine")
    result = module("home", path=home, source="x")
    assert result["msg"] == f"home {home}: not empty and no Clachan home, expected a new directory"
    assert [path.name for path in home.iterdir()] == ["thesis.txt"]
    (home / "thesis.txt").unlink()


@pytest.mark.parametrize("name", ["with space", "per%cent", "new\nline", "quo'te", "semi;colon", "dir/../up"])
def test_a_path_that_configuration_cannot_carry_is_refused(module: Module, folder: pathlib.Path, name: str) -> None:
    result = module("home", path=f"{folder}/{name}", source="x")
    if name == "dir/../up":
        assert result["home"] == f"{folder}/up"
        return
    assert result["msg"].startswith(f"home {folder}/{name}: expected an absolute path of letters")
    assert not list(folder.iterdir())


def test_a_path_too_long_for_a_socket_is_refused(module: Module, folder: pathlib.Path) -> None:
    path = folder / ("x" * 80)
    assert (
        module("home", path=path, source="x")["msg"] == f"home {path}: {len(str(path))} characters, expected at most 72"
    )


@needs_root
@pytest.mark.root
def test_a_home_that_slots_cannot_enter_is_refused(module: Module, folder: pathlib.Path) -> None:
    (folder / "private").mkdir(mode=0o700)
    result = module("home", path=folder / "private" / "h", source="x")
    wanted = (
        f"directory {folder}/private: closed to other users, expected mode o+x, as slots live in {folder}/private/h"
    )
    assert result["msg"] == wanted


def test_the_platform_is_unpacked_and_verified(module: Module, home: pathlib.Path, folder: pathlib.Path) -> None:
    module("home", path=home, source="one")
    archive = artifact(folder, {"roles/x/tasks/main.yml": b"---\n"})
    result = module("home", path=home, source="one", archive=archive)
    assert result["changed"]
    installed = home / "platform" / "current" / "ansible_collections" / "clachan" / "platform"
    assert (installed / "roles/x/tasks/main.yml").read_bytes() == b"---\n"
    assert result["digest"] == hashlib.sha256((installed / "MANIFEST.json").read_bytes()).hexdigest()
    assert mode(installed / "roles/x/tasks/main.yml") == 0o644
    again = module("home", path=home, source="one")
    assert (again["changed"], again["archive_needed"]) == (False, False)
    # the same collection from another place is no change; what a killed run left goes
    (home / "platform" / ".unpack-left").mkdir()
    other = module("home", path=home, source="two", archive=archive)
    assert not other["changed"]
    assert sorted(path.name for path in (home / "platform").iterdir()) == sorted([result["digest"], "current"])


def test_an_altered_artifact_is_refused(module: Module, home: pathlib.Path, folder: pathlib.Path) -> None:
    module("home", path=home, source="one")
    archive = artifact(folder, {"roles/x/tasks/main.yml": b"---\n"}, alter="roles/x/tasks/main.yml")
    message = module("home", path=home, source="one", archive=archive)["msg"]
    assert message.startswith("file roles/x/tasks/main.yml of the artifact: sha256 ")
    assert not (home / "platform" / "current").is_symlink()


def test_an_artifact_stays_inside(module: Module, home: pathlib.Path, folder: pathlib.Path) -> None:
    module("home", path=home, source="one")
    archive = artifact(folder, {"../outside": b"x"})
    message = module("home", path=home, source="one", archive=archive)["msg"]
    assert message == "file ../outside: outside of the collection, expected a path inside"

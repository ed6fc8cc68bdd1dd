"""The module `image` where nothing is built: disks of one's own, refusals, check mode, and what is there already."""

import importlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import Lab
from .payloads import payloads

Module = Callable[..., dict[str, Any]]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("qemu-img") is None, reason="this machine cannot: qemu-img is missing"),
]


def image_module() -> Any:
    return importlib.import_module("ansible_collections.clachan.platform.plugins.modules.image")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "own.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1G"], check=True)
    return path


def steps(module: Module, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Check mode, for real, for real again, check mode again; asserts what changed."""
    results = [module("image", arguments | {"_ansible_diff": True}, check) for check in (True, False, False, True)]
    assert [result.get("changed") for result in results] == [True, True, False, False], results
    return results


def test_a_disk_of_ones_own_in_and_out(run_module: Module, disk: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    taken = steps(run_module, {"name": "legacy", "source": str(disk), "store": str(store)})
    assert taken[0]["image"] == {}
    planned = {"name": "legacy", "disk_format": "qcow2", "virtual_size": 1 << 30}
    assert taken[0]["diff"] == {"before": {}, "after": planned}
    manifest = taken[1]["image"]
    assert {key: manifest[key] for key in planned} == planned
    assert (manifest["builder"], manifest["recipe"], manifest["packages"]) == ("import", None, {})
    assert Path(taken[1]["path"]).read_bytes() == disk.read_bytes()
    assert taken[2]["image"] == manifest
    assert [stage["stage"] for stage in taken[1]["stages"]] == ["copy and inspect"]
    gone = steps(run_module, {"name": "legacy", "state": "absent", "store": str(store)})
    assert gone[1]["diff"]["before"]["sha256"] == manifest["sha256"]
    assert (gone[1]["diff"]["after"], gone[1]["image"], gone[1]["path"]) == ({}, {}, "")
    assert sorted(path.name for path in store.iterdir()) == [".locks"]


def test_check_mode_makes_no_store(run_module: Module, disk: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    recipe: dict[str, Any] = {"packages": ["nginx-light"]}
    for arguments in ({"source": str(disk)}, {"recipe": recipe}, {"state": "absent"}):
        result = run_module("image", {"name": "web", "store": str(store), **arguments}, check=True)
        assert result["changed"] is ("state" not in arguments)
    assert not store.exists()


def test_an_unchanged_recipe_takes_no_second(run_module: Module, tmp_path: Path) -> None:
    """With an image in the store as a build leaves it; that nothing is built is what takes no time."""
    arguments = {"name": "web", "store": str(tmp_path / "store"), "recipe": {"size": "1GiB"}, "_ansible_diff": True}
    planned = run_module("image", arguments, check=True)["diff"]["after"]
    (tmp_path / "disk").write_bytes(b"disk")
    store = importlib.import_module("ansible_collections.clachan.platform.plugins.module_utils.image_store")
    about = {**planned, "virtual_size": 1 << 30, "disk_format": "qcow2", "builder": "bootstrap"}
    added = store.ImageStore(str(tmp_path / "store")).add(str(tmp_path / "disk"), about)
    began = time.monotonic()
    result = run_module("image", arguments)
    seconds = time.monotonic() - began
    assert (result["changed"], result["image"]) == (False, added)
    assert result["diff"]["before"] == result["diff"]["after"]
    assert seconds < 1


def test_one_disk_has_one_name(run_module: Module, disk: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    run_module("image", {"name": "one", "source": str(disk), "store": store})
    told = run_module("image", {"name": "two", "source": str(disk), "store": store})
    assert told["msg"] == f"disk {disk}: is in the store as one, expected the name two"


def test_a_disk_that_needs_another_file_is_refused(run_module: Module, disk: Path, tmp_path: Path) -> None:
    layer = tmp_path / "layer.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", disk, "-F", "qcow2", layer], check=True)
    told = run_module("image", {"name": "own", "source": str(layer), "store": str(tmp_path / "store")})
    assert f"disk {layer}: " in told["msg"]
    assert "backing file" in told["msg"]
    assert not (tmp_path / "store").exists()


def test_a_disk_that_is_too_large_is_refused(run_module: Module, tmp_path: Path) -> None:
    huge = tmp_path / "huge.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", huge, "100G"], check=True)
    told = run_module("image", {"name": "own", "source": str(huge), "store": str(tmp_path / "store")})
    assert told["msg"].startswith(f"disk {huge}: virtual size 107374182400 bytes, expected ")
    assert "68719476736" in told["msg"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"name": "Web", "recipe": {}}, "name of the image: 'Web', expected a lower-case letter, then "),
        ({"name": "web"}, "state is present but any of the following are missing: recipe, source"),
        ({"name": "web", "recipe": {}, "source": "/x"}, "parameters are mutually exclusive: recipe|source"),
        ({"name": "web", "recipe": {}, "store": "/srv/a,b:c"}, "store '/srv/a,b:c': expected an absolute path"),
        ({"name": "web", "source": "/srv/none"}, "disk /srv/none: not a file, expected one"),
        ({"name": "web", "recipe": {"base": "0" * 64}, "builder": "packer"}, "image " + "0" * 64),
    ],
)
def test_wrong_use_is_told(run_module: Module, tmp_path: Path, arguments: dict[str, Any], text: str) -> None:
    assert text in run_module("image", {"store": str(tmp_path / "store")} | arguments)["msg"]


@pytest.mark.parametrize(
    "place",
    ["name", "base", "size", "packages", "roles", "playbooks", "user", "group", "key", "shell", "source", "store"],
)
def test_payloads_run_nowhere(lab: Lab, tmp_path: Path, place: str) -> None:
    """Through Ansible, in the process of the action; each is refused, as a template or as anything else."""
    canary = tmp_path / "canary"
    tasks = []
    for name, text in payloads(canary).items():
        options = {"name": "web", "recipe": {"agent": False}, "store": str(tmp_path / "store")}
        marked = {"__ansible_unsafe": text}
        recipes: dict[str, Any] = {
            "base": {"base": marked},
            "size": {"size": marked},
            "packages": {"packages": [marked]},
            "roles": {"roles": [marked]},
            "playbooks": {"playbooks": [marked]},
            "user": {"users": [{"name": marked}]},
            "group": {"users": [{"name": "ann", "groups": [marked]}]},
            "key": {"users": [{"name": "ann", "authorized_keys": [marked]}]},
            "shell": {"users": [{"name": "ann", "shell": marked}]},
        }
        if place in recipes:
            options["recipe"] = recipes[place]
        elif place == "source":
            options = {"name": "web", "source": marked, "store": options["store"]}
        else:
            options[place] = marked
        tasks.append(
            {"name": f"Refuse {name}", "clachan.platform.image": options, "ignore_errors": True, "check_mode": True}
        )
    book = tmp_path / "payloads.yml"
    book.write_text(unsafe(tasks))
    done = lab.ansible(str(book), "-i", "localhost,")
    counts = done.recap()["localhost"]
    harmless = {"store": 2, "source": 0}.get(place, 0)  # an empty store is the usual one
    assert counts["ignored"] >= len(tasks) - max(harmless, 2), done.all
    assert "Traceback" not in done.all
    assert not canary.exists()


def unsafe(tasks: list[dict[str, Any]]) -> str:
    """A play in which the payloads are marked as no templates, as an inventory plugin leaves a tenant's text."""

    class Text(str):
        pass

    def mark(value: Any) -> Any:
        if isinstance(value, dict):
            return (
                Text(value["__ansible_unsafe"])
                if "__ansible_unsafe" in value
                else {k: mark(v) for k, v in value.items()}
            )
        return [mark(one) for one in value] if isinstance(value, list) else value

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_representer(Text, lambda dumper, text: dumper.represent_scalar("!unsafe", str(text), style='"'))
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": mark(tasks)}
    return yaml.dump([play], Dumper=Dumper, allow_unicode=False)


def test_documentation_has_every_option() -> None:
    documented = yaml.safe_load(image_module().DOCUMENTATION)["options"]
    compare(documented, image_module().OPTIONS)


def compare(documented: dict[str, Any], options: dict[str, Any]) -> None:
    assert set(documented) == set(options)
    for key, option in options.items():
        said = documented[key]
        for word in ("type", "elements", "default", "choices", "required"):
            assert said.get(word) == option.get(word), (key, word)
        if "options" in option:
            compare(said["suboptions"], option["options"])


def test_a_manifest_is_json_that_says_its_format(run_module: Module, disk: Path, tmp_path: Path) -> None:
    made = run_module("image", {"name": "own", "source": str(disk), "store": str(tmp_path / "store")})
    manifest = json.loads((Path(made["path"]).parent / "manifest.json").read_text())
    assert manifest == made["image"]
    assert manifest["format"] == 1

"""image build, import, list, show, push, export, remove: with the real playbooks, on real disks."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from clachan.cli import image_places
from clachan.cli.errors import CommandError
from live import Live

from .conftest import Cli, Ran

pytestmark = pytest.mark.skipif(
    not shutil.which("qemu-img"), reason="this machine cannot: qemu-img is not installed (qemu-utils)"
)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A qcow2 of 16 MiB whose content is new."""
    path, noise = tmp_path / "own disk.qcow2", tmp_path / "noise"
    noise.write_bytes(os.urandom(1 << 20))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", noise, path], check=True)
    subprocess.run(["qemu-img", "resize", "-q", "-f", "qcow2", path, "16M"], check=True)
    noise.unlink()
    return path


@pytest.fixture
def run(command: str, environment: dict[str, str], tmp_path: Path) -> Cli:
    """The command in a process of its own, as it runs Ansible."""

    def invoke(*words: object, **more: str) -> Ran:
        done = subprocess.run(
            [command, "image", *map(str, words)],
            env=environment | more,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return invoke


def listed(run: Cli, name: str, *options: str) -> Any:
    return [each for each in run("list", "--json", *options).json if each["name"] == name]


@pytest.mark.slow
def test_from_a_disk_of_ones_own_to_an_export(run: Cli, live: Live, disk: Path, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(disk.read_bytes()).hexdigest()
    made = run("import", disk, "mine", "--no-push")
    assert made.status == 0, made.err
    assert made.out.endswith(f"image mine {sha256}: in {live.home}/images\n")
    (row,) = listed(run, "mine")
    assert (row["sha256"], row["where"], row["state"], row["builder"]) == (sha256, ["local"], "ready", "import")
    assert live.call("GET", f"/images/{sha256}").status_code == 404

    again = run("import", disk, "mine", "--json")
    assert (again.status, again.json["sha256"]) == (0, sha256), again.err
    assert live.ok("GET", f"/images/{sha256}")["state"] == "ready"
    assert live.call("GET", f"/images/{sha256}/disk").content == disk.read_bytes()
    assert listed(run, "mine")[0]["where"] == ["local", "controller"]
    assert listed(run, "mine", "--local")[0]["where"] == ["local"]
    assert run("push", sha256[:12], "--json").json["received"] == disk.stat().st_size
    assert run("show", "mine", "--json").json == again.json
    assert f"sha256         {sha256}" in run("show", sha256[:8]).out
    assert run("show", "mine", "--sha256").out == f"{sha256}\n"
    assert [line.split()[:2] for line in run("list").out.splitlines() if "mine" in line] == [["mine", sha256[:12]]]

    done = run("export", "mine", "--format", "vmdk", "-o", "out disk.vmdk")
    checksum = hashlib.sha256((tmp_path / "out disk.vmdk").read_bytes()).hexdigest()
    assert done.out.splitlines()[-1] == f"{checksum}  {tmp_path}/out disk.vmdk", done.err
    assert (tmp_path / "out disk.vmdk.sha256").read_text() == f"{checksum}  out disk.vmdk\n"

    # gone from here, an export fetches it from the controller
    assert run("remove", "mine", "--local", "--yes").status == 0
    assert listed(run, "mine")[0]["where"] == ["controller"]
    assert run("show", "mine").status == 0
    done = run("export", "mine", "--format", "raw", "-o", tmp_path / "out.raw", "--json")
    checksum = hashlib.sha256((tmp_path / "out.raw").read_bytes()).hexdigest()
    assert done.json == {"image": sha256, "file": f"{tmp_path}/out.raw", "format": "raw", "sha256": checksum}
    assert listed(run, "mine")[0]["where"] == ["local", "controller"]
    assert run("remove", "mine").status == 1  # nobody answers the question
    assert run("remove", "mine", "--yes", "--json").json["sha256"] == sha256
    assert listed(run, "mine") == []
    assert run("show", "mine").err == (
        "clachan: image mine: unknown, expected the name of an image, or the beginning of its sha256\n"
    )


def test_without_a_controller_all_stays_here(run: Cli, disk: Path, tmp_path: Path) -> None:
    alone = {"CLACHAN_HOME": str(tmp_path / "alone")}
    made = run("import", disk, "mine", "--json", **alone)
    assert made.status == 0, made.err
    assert [each["where"] for each in run("list", "--json", **alone).json] == [["local"]]
    assert run("export", "mine", "-o", tmp_path / "out.qcow2", **alone).status == 0
    assert run("push", "mine", **alone).err.startswith("clachan: credentials: ")
    assert run("remove", "mine", "--yes", **alone).status == 0
    assert run("list", "--json", **alone).json == []


def test_what_is_refused(run: Cli, disk: Path, tmp_path: Path) -> None:
    based = tmp_path / "based.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", disk, "-F", "qcow2", based], check=True)
    refused = run("import", based, "based", "--no-push")
    assert refused.status == 1
    assert "has a backing file, expected a disk that stands alone" in refused.out + refused.err
    assert run("import", disk, "Not/a name").status == 2
    assert run("build", tmp_path / "none.yml").status == 2
    canary = tmp_path / "canary"
    recipe = tmp_path / "{{ recipe }}.yml"
    recipe.write_text(json.dumps({"name": "{{ lookup('ansible.builtin.pipe', 'touch canary') }}"}))
    refused = run("build", recipe, "--no-push")
    assert refused.status == 1
    assert "expected a lower-case letter, then letters, digits, _ and -" in refused.out + refused.err
    assert not canary.exists()
    recipe.write_text(json.dumps({"name": "web", "packages": ["--option"]}))
    refused = run("build", recipe, "--no-push")
    assert refused.status == 1
    assert "expected the name of a Debian package" in refused.out + refused.err
    assert run("export", "mine", "-o", tmp_path / "none" / "out").err == (
        f"clachan: folder {tmp_path}/none: does not exist, expected it\n"
    )


def test_which_image_is_meant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLACHAN_HOME", str(tmp_path))
    facts = {"format": 1, "size": 1, "virtual_size": 512, "disk_format": "raw", "recipe_digest": None, "recipe": None}
    for sha256, name, created in (
        ("aaaaaaa" + "0" * 57, "web", "2026-01-02T00:00:00Z"),
        ("aaaaaaa" + "1" * 57, "web", "2026-01-01T00:00:00Z"),
        ("bbbbbbb" + "1" * 57, "aaaaaaa0", "2026-01-01T00:00:00Z"),
    ):
        folder = tmp_path / "images" / sha256
        folder.mkdir(parents=True)
        more = {"sha256": sha256, "name": name, "created": created, "builder": "import", "packages": {}}
        (folder / "manifest.json").write_text(json.dumps(facts | more))
    assert image_places.find("web", None).sha256.startswith("aaaaaaa0")
    assert image_places.find("aaaaaaa0", None).sha256.startswith("bbbbbbb")
    assert image_places.find("aaaaaaa1", None).sha256.startswith("aaaaaaa1")
    for wanted, expected in {
        "aaaaaaa": "image aaaaaaa: 2 begin so, expected more digits",
        "aaaaa": "image aaaaa: unknown, expected the name of an image, or the beginning of its sha256",
    }.items():
        with pytest.raises(CommandError) as caught:
            image_places.find(wanted, None)
        assert str(caught.value) == expected
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(CommandError, match=r"manifest .*: name Field required, expected that of an image"):
        image_places.find("web", None)

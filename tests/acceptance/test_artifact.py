"""The collection's artifact is enough: installed into an empty folder, with Ansible and without the clone."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.heavy, pytest.mark.timeout(1800)]


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="clachan-artifact-", dir="/var/tmp"))
    path.chmod(0o755)
    yield path
    if (path / "home").exists():
        run(path, path / "home/bin/clachan", "reset", "--yes", "--home", path / "home")
    shutil.rmtree(path, ignore_errors=True)


def run(folder: Path, *command: str | Path) -> str:
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "CLACHAN_"))}
    variables |= {
        "CLACHAN_HOME": str(folder / "home"),
        "ANSIBLE_HOME": str(folder / "ansible"),
        "ANSIBLE_COLLECTIONS_PATH": str(folder / "collections"),
        "PATH": f"{folder}/environment/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    }
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


def build(folder: Path) -> list[Path]:
    """Two artifacts of one clone, each built from nothing; then there is no clone any more."""
    clone = folder / "clone"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    artifacts = []
    for name in ("one", "two"):
        shutil.rmtree(clone / "files/wheels", ignore_errors=True)
        run(folder, clone / "dev", "build")
        artifacts.append(Path(shutil.move(next((clone / "dist").glob("*.tar.gz")), folder / f"{name}.tar.gz")))
    shutil.rmtree(clone)
    return artifacts


def manifest(artifact: Path) -> bytes:
    return subprocess.run(["tar", "-xOzf", artifact, "MANIFEST.json"], check=True, capture_output=True).stdout


def test_the_artifact_brings_up_the_platform(folder: Path) -> None:
    artifact, again = build(folder)
    assert manifest(artifact) == manifest(again)
    run(folder, "/usr/bin/python3", "-m", "venv", folder / "environment")
    lock = ROOT / "files/requirements/cli.txt"
    run(folder, folder / "environment/bin/pip", "-q", "install", "--require-hashes", "-r", lock)
    run(folder, "ansible-galaxy", "collection", "install", artifact, "-p", folder / "collections", "--no-deps")
    first = run(folder, "ansible-playbook", "clachan.platform.standalone")
    assert "failed=0" in first
    listed = json.loads(run(folder, folder / "home/bin/clachan", "instance", "list", "--json"))
    assert {one["path"]: one["observed"]["state"] for one in listed} == {
        "home.lake": "started",
        "home.forwarder": "started",
    }
    second = run(folder, "ansible-playbook", "clachan.platform.standalone")
    assert "changed=0" in second.partition("PLAY RECAP")[2]

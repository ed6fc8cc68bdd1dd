"""Images for tests: built by the collection as it is installed, in a store that is kept between runs."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from testbed.host import REPOSITORY, LabError, locked, run, testbed

BIN = Path(sys.executable).parent
COMMANDS = ("mmdebstrap", "mkfs.ext4", "sfdisk", "extlinux", "qemu-img", "unshare", "setpriv")


def obstacle() -> str | None:
    """Why this host cannot build images; None when it can."""
    if os.geteuid() != 0:
        return "images need root"
    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [name for name in COMMANDS if not any((Path(part) / name).exists() for part in search.split(":"))]
    return f"images need {', '.join(missing)}" if missing else None


def installed_collection(folder: Path) -> Path:
    """The artifact of the repository, installed: what goes into ANSIBLE_COLLECTIONS_PATH."""
    run([BIN / "ansible-galaxy", "collection", "build", "--force", "--output-path", folder, REPOSITORY])
    artifact = next(folder.glob("clachan-platform-*.tar.gz"))
    place = folder / "collections"
    run([BIN / "ansible-galaxy", "collection", "install", "--no-deps", "--force", "-p", place, artifact])
    return place


def store() -> Path:
    return testbed() / "images"


def command(folder: Path, collections: Path, **options: Any) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of a playbook with one task of the module `image`."""
    task = {"name": "Image", "clachan.platform.image": options, "register": "made"}
    show = {"name": "Show", "ansible.builtin.copy": {"dest": str(folder / "made.json"), "content": "{{ made }}"}}
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": [task, show]}
    interpreter = {"ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    book = folder / "image.json"
    (folder / "ansible.cfg").write_text("[defaults]\n")
    book.write_text(json.dumps([{**play, "vars": interpreter}]))
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(collections),
        "ANSIBLE_CONFIG": str(folder / "ansible.cfg"),
        "ANSIBLE_HOME": str(folder / "ansible"),
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_NOCOLOR": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return [str(BIN / "ansible-playbook"), "-i", "localhost,", str(book)], environment


def make(folder: Path, collections: Path, **options: Any) -> dict[str, Any]:
    """The result of the module; LabError when it failed."""
    words, environment = command(folder, collections, **options)
    done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"image {options.get('name')}: not built, expected it: {(done.stdout + done.stderr)[-3000:]}")
    result: dict[str, Any] = json.loads((folder / "made.json").read_text())
    return {**result, "said": done.stdout}


def node_image(folder: Path, **recipe: Any) -> Path:
    """The disk of an image with the agent, in the kept store."""
    name = "t" + hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]
    with locked(testbed() / "images.lock"):
        folder.mkdir(parents=True, exist_ok=True)
        made = make(folder, installed_collection(folder), name=name, store=str(store()), recipe=recipe)
        for manifest in store().glob("*/manifest.json"):  # of earlier states of the repository
            about = json.loads(manifest.read_text())
            if about["name"] == name and about["sha256"] != made["image"]["sha256"]:
                run(["rm", "-rf", manifest.parent])
    return Path(made["path"])

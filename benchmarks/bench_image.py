"""Images: the root file system beside a bare mmdebstrap of the same packages, and one recipe by both builders.

As root. Packer's time is for the same recipe over the base that `bootstrap` made, in a guest under software emulation
where KVM does not work.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from measured import ROOT, header, row

sys.path.insert(0, str(ROOT / "tests"))
from testbed import guest, images
from testbed.base import APT_OPTIONS, DPKG_OPTIONS, SUITE, debian_sources

RECIPE = {"packages": ["nginx-light"], "users": [{"name": "web", "groups": ["adm"]}]}
LARGEST_MIB = 600


def bare(folder: pathlib.Path, packages: list[str]) -> float:
    """Seconds that mmdebstrap takes by itself for a directory with these packages."""
    listed = []
    for form, text in debian_sources().items():
        listed.append(folder / f"debian.{form}")
        listed[-1].write_text(text)
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", f"--include={','.join(packages)}"]
    command += [f"--aptopt={option}" for option in APT_OPTIONS] + [f"--dpkgopt={option}" for option in DPKG_OPTIONS]
    began = time.monotonic()
    subprocess.run([*command, SUITE, folder / "bare", *listed], check=True)
    return time.monotonic() - began


def base_packages(collections: pathlib.Path) -> list[str]:
    """Those that the collection installs."""
    code = "from ansible_collections.clachan.platform.plugins.module_utils.image_debian import PACKAGES; import json"
    script = f"import sys; sys.path.insert(0, {str(collections)!r}); {code}; print(json.dumps(PACKAGES))"
    found: list[str] = json.loads(
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout
    )
    return found


def stages(result: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    return {str(stage["stage"]): stage["seconds"] for stage in result.get("stages", [])}


def measure(folder: pathlib.Path) -> None:
    collections = images.installed_collection(folder)
    store = str(folder / "store")

    def make(name: str, **more: object) -> tuple[float, dict]:
        began = time.monotonic()
        made = images.make(folder, collections, name=name, store=store, **more)
        return time.monotonic() - began, made

    alone = bare(folder, base_packages(collections))
    _, first = make("plain", recipe={}, builder="bootstrap")
    once = stages(first)["root file system of debian-12"]
    row("root file system, once", f"{once:.1f} s", f"{alone:.1f} s", f"{once / alone:.2f}", "about 50 s")
    row("agent, once", f"{stages(first)['agent']:.1f} s")
    row("image with the agent", f"{first['image']['size'] / 2**20:.0f} MiB", "", "", f"<= {LARGEST_MIB} MiB")
    took, made = make("web", recipe=RECIPE, builder="bootstrap")
    tasks = stages(made)["recipe"]
    row("a recipe on it, without its tasks", f"{took - tasks:.1f} s", "", "", "<= 30 s")
    row("a recipe on it, its tasks", f"{tasks:.1f} s")
    again, same = make("web", recipe=RECIPE, builder="bootstrap")
    assert not same["changed"]
    empty = play_alone(folder, collections)
    row("the recipe unchanged, but Ansible's start", f"{max(0.0, again - empty):.2f} s", "", "", "<= 1 s")
    if guest.obstacle() is None and shutil.which("packer"):
        by_packer, _ = make("web2", recipe=RECIPE, builder="packer")
        row("the same recipe", f"{took:.1f} s", f"{by_packer:.1f} s Packer", f"{took / by_packer:.2f}")


def play_alone(folder: pathlib.Path, collections: pathlib.Path) -> float:
    """Seconds of a playbook like the one of `make`, without its task."""
    words, environment = images.command(folder, collections, name="none")
    book = pathlib.Path(words[-1])
    [play] = json.loads(book.read_text())
    play["tasks"] = play["tasks"][1:]
    play["vars"]["made"] = {}
    book.write_text(json.dumps([play]))
    began = time.monotonic()
    subprocess.run(words, env=environment, cwd=folder, check=True, capture_output=True)
    return time.monotonic() - began


def main() -> None:
    reason = images.obstacle()
    if reason:
        print(f"this machine cannot: {reason}")
        return
    header("mmdebstrap")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="clachan-bench-image-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        measure(folder)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    os.umask(0o022)
    main()

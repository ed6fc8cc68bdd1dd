"""Images as they are built: by both builders, killed at each stage, without room, and booted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from testbed import guest, host, images, soak  # noqa: E402
from testbed.host import LabError, locked, run, until  # noqa: E402
from testbed.image_files import listing  # noqa: E402

pytestmark = [pytest.mark.heavy, pytest.mark.guest, pytest.mark.root, pytest.mark.timeout(1800)]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0bn3NLFjZ7Hd3p9Ee7vVxkoKrxUShJp9Qv4TzEb7Jk admin"
SITE = """
- name: Site
  hosts: all
  gather_facts: false
  tasks:
    - name: Write a page
      ansible.builtin.copy: {dest: /var/www/html/index.html, content: "hello", mode: "0644"}
    - name: Enable the server
      ansible.builtin.systemd_service: {name: nginx, enabled: true, state: started}
"""
COMPILED = (".pyc", "dist-info/RECORD")
"""Files whose bytes hold the time of their making."""


@pytest.fixture(scope="module", autouse=True)
def _able() -> None:
    reason = images.obstacle()
    if reason:
        pytest.skip(f"this machine cannot: {reason}")


@pytest.fixture(scope="module")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images.installed_collection(tmp_path_factory.mktemp("artifact"))


@pytest.fixture
def work() -> Iterator[Path]:
    """A folder with a short path: stores are made in it."""
    folder = host.testbed() / f"image-test-{os.getpid()}"
    folder.mkdir(mode=0o755)
    yield folder
    subprocess.run(["umount", "-q", folder / "full"], check=False, capture_output=True)
    run(["rm", "-rf", folder])


def _packer() -> None:
    if shutil.which("packer") is None:
        pytest.skip("this machine cannot: Packer is not installed")
    reason = guest.obstacle()
    if reason:
        pytest.skip(f"this machine cannot: {reason}")


def loops(folder: Path) -> str:
    return "".join(line for line in run(["losetup", "-nl", "-O", "BACK-FILE"]).splitlines() if str(folder) in line)


def leftovers(store: Path) -> list[str]:
    """What of a build is there beside images, caches and the folders that the next build removes."""
    found = [line for line in Path("/proc/mounts").read_text().splitlines() if f"{store}/" in line]
    for process in psutil.process_iter():
        try:
            if any(f"{store}/" in word for word in process.cmdline()):
                found.append(" ".join(process.cmdline()[:6]))
        except psutil.Error:
            continue
    return found + ([loops(store)] if loops(store) else [])


def kill_at(stage: str, seconds: float, folder: Path, collections: Path, **options: Any) -> None:
    """Start a build, and kill Ansible and its worker, and nobody else, that long after the stage was told."""
    words, environment = images.command(folder, collections, **options)
    process = subprocess.Popen(
        words, env=environment | {"PIP_CANARY": "word-of-a-secret"}, cwd=folder, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.rstrip().endswith(f"s  {stage}"):
            break
    else:
        raise AssertionError(f"stage {stage}: never told: {''.join(said)}")
    time.sleep(seconds)
    for one in [process, *psutil.Process(process.pid).children()]:
        os.kill(one.pid, signal.SIGKILL)
    process.stdout.close()
    process.wait()


STAGES = {"root file system of debian-12": 12.0, "agent": 6.0, "recipe": 4.0, "disk": 4.0, "store": 0.2}
"""Seconds that each may go on before it is killed."""


@pytest.mark.soak
@pytest.mark.timeout(soak.seconds(1800))
def test_a_build_that_is_killed_at_any_stage_is_finished_by_the_next(work: Path, collections: Path) -> None:
    store, book = work / "store", work / "site.yml"
    book.write_text(SITE)
    options = {"name": "web", "builder": "bootstrap"}
    options["recipe"] = {"packages": ["nginx-light"], "playbooks": [str(book)]}
    fresh = store
    for chance in soak.rounds("build"):
        for stage, longest in STAGES.items():
            place = fresh if stage.startswith("root") else store
            kill_at(stage, chance.uniform(0, longest), work, collections, store=str(place), **options)
            assert until(lambda place=place: not leftovers(place), 10), (stage, leftovers(place))
        forget(store)
        fresh = work / "fresh"  # the other has its root file system by now
    made = images.make(work, collections, store=str(store), **options)
    assert made["changed"] is True
    assert made["image"]["packages"]["nginx-light"]
    assert made["image"]["size"] < 600 << 20
    assert sorted(path.name for path in store.iterdir()) == sorted(
        [made["image"]["sha256"], ".locks", "cache", "recipes"]
    )
    assert leftovers(store) == []
    began = time.monotonic()
    again = images.make(work, collections, store=str(store), **options)
    assert time.monotonic() - began < 6  # with the start of Ansible and two tasks
    assert (again["changed"], again["image"]) == (False, made["image"])
    raw = work / "disk.raw"
    run(["qemu-img", "convert", "-O", "raw", made["path"], raw])
    found = subprocess.run(["grep", "-c", "-a", "word-of-a-secret", raw], capture_output=True, text=True, check=False)
    assert found.stdout == "0\n", "a variable of the build stayed in the image"


def forget(store: Path) -> None:
    """Take away what would spare the next build a stage: a kill in the last one may have come too late."""
    for path in [*store.glob("cache/agent-*"), *store.glob("recipes/*"), *store.glob("?" * 64)]:
        run(["rm", "-rf", path])


@pytest.mark.soak
@pytest.mark.timeout(soak.seconds(900))
def test_a_build_whose_guest_is_killed_ends_at_once(work: Path, collections: Path) -> None:
    _packer()
    store = work / "store"
    keep_base(work, store)
    options = {"name": "lost", "store": str(store), "builder": "packer", "recipe": {"agent": False}}
    for chance in soak.rounds("packer"):
        words, environment = images.command(work, collections, **options)
        with subprocess.Popen(words, env=environment, cwd=work, stdout=subprocess.PIPE, text=True) as process:
            try:
                [guest_] = _wait_for_qemu(process)
                time.sleep(chance.uniform(0, 15) * chance.uniform(0, 1))
                guest_.kill()
                said, _ = process.communicate(timeout=60)
            finally:
                process.terminate()
        assert process.returncode == 2
        assert said.count('"msg": "guest of the build: its QEMU ended, expected it to run until') == 1, said
        assert leftovers(store) == []
        kept = [json.loads(manifest.read_text())["name"] for manifest in store.glob("*/manifest.json")]
        assert kept == ["debian-12"], "only the one that the guest started from"


def _wait_for_qemu(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found: list[psutil.Process] = []

    def look() -> bool:
        assert process.poll() is None
        with suppress(psutil.NoSuchProcess):
            below = psutil.Process(process.pid).children(recursive=True)
            # not the one that is asked for its version, nor the one that tries KVM
            found[:] = [one for one in below if one.name().startswith("qemu-system") and "-pidfile" in one.cmdline()]
        return bool(found)

    assert until(look, 300, pause=0.2)
    return found


def test_both_builders_give_the_same(work: Path, collections: Path) -> None:
    _packer()
    book = work / "site.yml"
    book.write_text(SITE)
    recipe = {
        "packages": ["nginx-light"],
        "playbooks": [str(book)],
        "users": [{"name": "root", "authorized_keys": [KEY]}, {"name": "web", "groups": ["adm"]}],
    }
    made = {}
    for builder in ("bootstrap", "packer"):
        folder = work / builder
        folder.mkdir()
        made[builder] = images.make(
            folder, collections, name=builder, store=str(work / "store"), recipe=recipe, builder=builder
        )
    one, other = (made[builder]["image"]["packages"] for builder in ("bootstrap", "packer"))
    assert one == other
    files = {builder: listing(Path(result["path"]), work) for builder, result in made.items()}
    different = {
        path: (files["bootstrap"].get(path), files["packer"].get(path))
        for path in sorted(set(files["bootstrap"]) | set(files["packer"]))
        if files["bootstrap"].get(path) != files["packer"].get(path) and not path.endswith(COMPILED)
    }
    assert different == {}
    assert "etc/systemd/system/multi-user.target.wants/nginx.service" in one_of(files)
    assert leftovers(work / "store") == []
    told = made["packer"]["said"]
    assert "Gracefully halting" in told


def one_of(files: dict[str, dict[str, str]]) -> dict[str, str]:
    return files["packer"]


def test_the_image_holds_nothing_of_a_machine(work: Path, collections: Path) -> None:
    disk = images.node_image(work / "image")
    files = listing(disk, work)
    assert [path for path in files if path.startswith("etc/ssh/ssh_host_")] == []
    assert files["etc/machine-id"].split()[2] == "0"
    assert files["etc/resolv.conf"].split()[2] == "0"
    assert [path for path in files if path.startswith("var/lib/clachan/envs/pip")] == []
    for path in ("var/lib/systemd/random-seed", "root/.ssh", "root/.cache"):
        assert path not in files
    assert [path for path in files if path.startswith("var/lib/apt/lists/")] == ["var/lib/apt/lists/partial"]
    logs = {path: about.split() for path, about in files.items() if path.startswith("var/log/")}
    assert {path: words for path, words in logs.items() if words[0].startswith("-") and words[2] != "0"} == {}
    wanted = "etc/systemd/system/multi-user.target.wants"
    assert {f"{wanted}/clachan-agent.service", f"{wanted}/clachan-supervisord.path"} <= set(files)
    assert f"{wanted}/clachan-supervisord.service" not in files, "it would take seconds from a machine that joins"
    assert "var/lib/clachan/node/config.json" in files
    assert "var/lib/clachan/node/node.json" not in files


def keep_base(work: Path, store: Path) -> None:
    """Put the root file system that is kept between runs into a store."""
    images.node_image(work / "image")
    (store / "cache").mkdir(parents=True)
    run(["cp", "-a", next(images.store().glob("cache/debian-12-*")), store / "cache"])


@pytest.mark.parametrize(("size", "cached"), [("250M", False), ("600M", True)])
def test_a_full_disk_is_one_clear_error(work: Path, collections: Path, size: str, cached: bool) -> None:
    """While the root file system is made, and while the disk is."""
    full = work / "full"
    full.mkdir()
    run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", full])
    if cached:
        keep_base(work, full)
    with pytest.raises(LabError) as told:
        images.make(work, collections, name="plain", store=str(full), recipe={"agent": False}, builder="bootstrap")
    said = str(told.value)
    assert said.count(f'"msg": "file system of {full}: full (') == 1
    assert "expected room for the image" in said
    assert "Traceback" not in said
    assert not list(full.glob(".partial-*"))
    assert not list(full.glob("*/disk*"))
    assert leftovers(full) == []


JOIN = {"url": "https://controller.clachan.internal:20000", "node": "vm_test", "token": "none"}


def test_a_guest_takes_its_seed_once_and_grows(work: Path) -> None:
    reason = guest.obstacle()
    if reason:
        pytest.skip(f"this machine cannot: {reason}")
    disk = images.node_image(work / "image")
    files = [
        {"path": "/var/lib/clachan/node/join.json", "permissions": "0600", "content": json.dumps(JOIN)},
        {"path": "/srv/deep/er/bytes", "encoding": "b64", "content": "AAEC"},
        {"path": "/srv/text", "content": "{{ 7 * 7 }} $(id)\n"},
    ]
    with (
        locked(host.testbed() / "guest.lock"),
        guest.Guest(work / "guest", disk, disk_size="5G", user_data={"write_files": files}) as machine,
    ):
        seconds = machine.wait_banner()
        print(f"banner after {seconds:.1f} s")
        assert seconds < 90  # 22-27 s with nothing else running
        assert machine.ssh("hostname") == "guest\n"
        assert machine.ssh("hostname", host=guest.IPV6) == "guest\n"
        assert machine.ssh("cd /etc/ssh; ls ssh_host_*").split() == ["ssh_host_ed25519_key", "ssh_host_ed25519_key.pub"]
        assert machine.ssh("cat /srv/text") == "{{ 7 * 7 }} $(id)\n"
        assert machine.ssh("od -An -tx1 /srv/deep/er/bytes").split() == ["00", "01", "02"]
        assert machine.ssh("stat -c %a /var/lib/clachan/node/join.json") == "600\n"
        assert int(machine.ssh("df -BM --output=size / | tail -1").strip().rstrip("M")) > 4600
        assert machine.ssh("ip -4 route show default").startswith("default via 169.254.1.1 dev eth0")
        assert machine.ssh("ip -6 route show default").startswith("default via fe80::1 dev eth0")
        assert len(machine.ssh("cat /etc/machine-id").strip()) == 32
        assert machine.ssh("systemctl is-enabled apt-daily.timer", check=False) == "masked\n"
        assert machine.ssh("systemctl is-active clachan-agent", check=False) == "active\n"
        assert machine.ssh("systemctl --failed --no-legend") == ""
        assert machine.ask_agent("guest-get-host-name") == {"host-name": "guest"}
        machine.ssh("echo mine > /srv/text; sync")
        assert machine.shut_down() < 20
        machine.start()
        machine.wait_banner()
        assert machine.ssh("cat /srv/text") == "mine\n"
        machine.cut()
        machine.instance = "second"
        machine.write_seed()
        machine.start()
        machine.wait_banner()
        assert machine.ssh("cat /srv/text") == "{{ 7 * 7 }} $(id)\n"

"""A hub and its users: unix users, disks, control groups, sandboxes, a lake, logins by the controller's tokens."""

import json
import os
import pwd
import signal
import subprocess
import sysconfig
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import live
import psutil
import pytest
from clachan.agent.processes import end_all_of

from .conftest import Artifact, unix_users
from .hub import LAKE_SECRET, NEEDS, HubNode, Kernel, Person, platform_collection, settles, sha256

pytestmark = NEEDS


@pytest.fixture(scope="module")
def users() -> Iterator[list[str]]:
    with unix_users(f"clh{os.getpid()}", 6) as names:
        yield names


@pytest.fixture(scope="module")
def controller(folder: Path) -> Iterator[live.Live]:
    home = folder / "controller"
    home.mkdir()
    with live.running_controller(home, process=True) as running:
        yield running


@pytest.fixture(scope="module")
def node(folder: Path, things: Artifact, users: list[str], controller: live.Live) -> Iterator[HubNode]:
    home = folder / "hub"
    home.mkdir(mode=0o755)
    found = HubNode(home, platform_collection(folder / "hubs"), things, users)
    found.start_supervisord()
    found.open_agent()
    try:
        found.order_lake()
        found.order_hub(
            [
                {"name": "alice", "disk_mib": 160},
                {"name": "bob", "disk_mib": 96},
                {"name": "carol", "memory_mib": 768},
            ],
            lab_controller_url=controller.url,
            lab_controller_ca=Path(controller.ca_file).read_text(),
            lab_lake_url=found.published("lake")["url"],
            lab_lake_token=LAKE_SECRET,
        )
        (home / "hub.pem").write_text(found.published("hub")["certificate"])
        yield found
    finally:
        for disk in (home / "mounts").glob("*"):
            subprocess.run(["umount", "-l", disk], check=False, capture_output=True)
        found.close()
        for user in users:
            end_all_of(pwd.getpwnam(user).pw_uid)
            for group in groups(user):
                settles(lambda group=group: not (group / "cgroup.procs").read_text())
                group.rmdir()


def groups(user: str) -> list[Path]:
    """The control groups of that unix user, of version 1 or 2."""
    return [*Path("/sys/fs/cgroup").glob(f"*/clachan/{user}"), *Path("/sys/fs/cgroup").glob(f"clachan/{user}")]


@pytest.fixture(scope="module")
def tokens(controller: live.Live) -> dict[str, str]:
    controller.tenant("zeta")
    made = {name: controller.as_user(name, "member", ["home"]).token for name in ("alice", "bob", "dave")}
    made["carol"] = controller.as_user("carol", "member", ["zeta"]).token
    return {name: str(token) for name, token in made.items()}


def person(node: HubNode, name: str, token: str) -> Person:
    return Person(node.published("hub")["url"], node.home / "hub.pem", name, token)


@pytest.fixture(scope="module")
def working(node: HubNode, tokens: dict[str, str]) -> Iterator[dict[str, Person]]:
    """Alice and Bob, each with a server."""
    found = {name: person(node, name, tokens[name]) for name in ("alice", "bob")}
    for one in found.values():
        assert one.login().status_code == 200
        one.open_server()
    yield found
    for one in found.values():
        one.session.close()


@pytest.fixture
def kernels(working: dict[str, Person]) -> Iterator[dict[str, Kernel]]:
    found = {name: one.kernel() for name, one in working.items()}
    yield found
    for kernel in found.values():
        kernel.close()


def test_who_may_log_in(node: HubNode, tokens: dict[str, str], controller: live.Live) -> None:
    pairs = {
        ("alice", tokens["bob"]): "another's token",
        ("alice", "wrong-token-of-nobody"): "no token",
        ("alice", str(controller.token)): "the operator's token",
        ("carol", tokens["carol"]): "a member of another tenant only",
        ("dave", tokens["dave"]): "not in lab_users",
    }
    for (name, token), why in pairs.items():
        one = person(node, name, token)
        assert one.login().status_code == 403, why
        assert one.get("/hub/home").url.startswith(f"{one.base}/hub/login"), why
        one.session.close()
    evil = person(node, "<img src=x onerror=alert(1)>", tokens["alice"])
    shown = evil.login()
    assert (shown.status_code, "<img src=x" in shown.text, "&lt;img src=x" in shown.text) == (403, False, True)
    evil.session.close()
    for path in (node.directory("hub") / "log").glob("*.log*"):
        assert not [name for name, token in tokens.items() if token in path.read_text()]


def test_limits_are_shown_before_the_start(node: HubNode, tokens: dict[str, str]) -> None:
    one = person(node, "bob", tokens["bob"])
    shown = one.login()
    assert [cookie.name for cookie in one.session.cookies if not cookie.secure] == []
    shown = one.get("/hub/spawn")
    limits = "1.0 processors, 1024 MiB of memory, 512 processes and threads, 96 MiB of disk"
    assert f"Your limits: {limits}." in shown.text
    assert "nobody uses for 60 minutes is stopped" in shown.text
    assert node.published("carol")["limits"].split(", ")[1] == "768 MiB of memory"
    assert node.published("bob")["warning"] == ""
    one.session.close()


def test_promises_hold(node: HubNode) -> None:
    assert node.kept("hub", "reads_the_lake").stdout.startswith("the lake answers")
    started = node.kept("alice", "starts_a_kernel")
    assert started.stdout.startswith("kernel science computed after"), started.stdout + started.stderr
    assert node.kept("alice", "ready").returncode == 0


def test_users_do_not_see_one_another(
    node: HubNode, working: dict[str, Person], kernels: dict[str, Kernel], users: list[str]
) -> None:
    alice, bob = working["alice"], working["bob"]
    for path in ("/api/kernels", "/api/contents", "/api/sessions", "/lab"):
        assert alice.get(f"/user/bob{path}").status_code == 403, path
    assert alice.ask("GET", "/api/kernels").json()[0]["id"] != bob.ask("GET", "/api/kernels").json()[0]["id"]
    code = """
import os, pathlib, urllib.request, urllib.error
print(sorted({os.stat(f"/proc/{pid}").st_uid for pid in os.listdir("/proc") if pid.isdigit()}) == [os.getuid()])
print(len([pid for pid in os.listdir("/proc") if pid.isdigit()]) < 12)
for path in %r:
    try:
        print(path, os.listdir(path) if os.path.isdir(path) else open(path).read())
    except OSError as error:
        print(type(error).__name__)
for url in %r:
    try:
        print(url, urllib.request.urlopen(url).status)
    except urllib.error.HTTPError as error:
        print(error.code)
for path in ("/var/tmp/../lib/x", %r):
    try:
        open(path, "w")
        print("written")
    except OSError as error:
        print(type(error).__name__)
"""
    hub, slot = node.directory("hub"), node.directory("bob")
    hidden = [str(node.disk("bob") / "home"), str(slot / "var"), str(slot / "etc/secret"), str(hub / "etc/lake-token")]
    hidden += [str(hub / "etc/hub.json"), str(hub / "var")]
    launcher = node.published("bob")["url"]
    server = launcher.rpartition(":")
    closed = [launcher + "/", f"{server[0]}:{int(server[2]) + 1}/user/bob/api/kernels"]
    said = kernels["alice"].run(code % (hidden, closed, str(node.directory("alice") / "var/x"))).splitlines()
    assert said[:2] == ["True", "True"]
    assert said[2:8] == ["PermissionError"] * 6
    assert said[8:10] == ["401", "403"]
    assert len(said) == 12
    assert "written" not in said
    # kernels speak through sockets: nothing of theirs listens where others could
    uid = pwd.getpwnam(users[2]).pw_uid
    listening = [
        line.split()[1]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[7] == str(uid)
    ]
    inside = [one for one in listening if not one.startswith("0100007F")]
    assert len(inside) == 2, "launcher and server"


def test_the_lake_is_one_line_away_and_its_secret_is_not(kernels: dict[str, Kernel]) -> None:
    opened = kernels["alice"].run(
        "from clachan_lake import open_lake\nlake = open_lake()\n"
        "lake.arrays.create('alice/a', (0,), 'f8').append([2.0, 2.0, 2.0])\n"
        "print(float(lake.arrays['alice/a'][:].sum()))"
    )
    assert opened == "6.0"
    assert "without the scope 'admin'" in kernels["alice"].run("lake.tokens.create(scopes=['admin'])")
    assert kernels["alice"].run(f"import os; print({LAKE_SECRET!r} in str(dict(os.environ)))") == "False"


def test_who_takes_all_memory_meets_their_own_limit(
    node: HubNode, kernels: dict[str, Kernel], users: list[str]
) -> None:
    assert kernels["bob"].run("kept = 42") == ""
    alone = kernels["alice"].run("import numpy as np; a = np.ones(200 << 20)")
    assert alone.startswith(("MemoryError", "_ArrayMemoryError", "numpy._core._exceptions._ArrayMemoryError")), alone
    many = """
import subprocess, sys
grab = "import time; held = bytearray(600 << 20); print('held', flush=True); time.sleep(5)"
made = [subprocess.Popen([sys.executable, "-c", grab]) for _ in range(4)]
print(sorted(one.wait() for one in made).count(-9) >= 3)
"""
    assert kernels["alice"].run(many).split()[-1] in {"True", "died"}
    assert kernels["bob"].run("print(kept)") == "42"
    assert kernels["bob"].run("b = bytearray(400 << 20); print(len(b) >> 20)") == "400"
    group = Path("/sys/fs/cgroup/memory/clachan", users[2], "memory.max_usage_in_bytes")
    if group.exists():
        assert int(group.read_text()) <= 1024 << 20
    assert node.kept("alice", "ready").returncode == 0


def test_who_fills_their_disk_stops_nobody_else(
    node: HubNode, working: dict[str, Person], kernels: dict[str, Kernel], tokens: dict[str, str]
) -> None:
    image = node.home / "volumes/home.alice/home.img"
    taken = image.stat().st_blocks * 512
    assert taken >= 64 << 20, "the room is taken when the disk is made"
    fill = """
import os
for path in (os.path.expanduser("~/full"), "/tmp/full", "/var/tmp/full2"):
    try:
        with open(path, "wb", buffering=0) as out:
            while True:
                out.write(bytes(1 << 20))
    except OSError as error:
        print(error.strerror)
"""
    assert kernels["alice"].run(fill).splitlines() == ["No space left on device"] * 3
    assert image.stat().st_blocks * 512 == taken
    assert node.disk("alice").stat().st_dev != node.home.stat().st_dev
    assert kernels["bob"].run("open('mine', 'wb').write(bytes(8 << 20)); print('written')") == "written"
    # with a full disk one still gets in, and makes room
    alice = working["alice"]
    alice.stop_server()
    settles(lambda: node.kept("alice", "ready").stdout == "server is not asked for\n")
    alice.open_server()
    kernel = alice.kernel()
    assert kernel.run("import os; os.unlink('full'); print('room')") == "room"
    kernel.close()
    assert (
        alice.ask("PUT", "/api/contents/a.txt", {"type": "file", "format": "text", "content": "x"}).status_code == 201
    )


def test_names_with_markup_are_only_names(working: dict[str, Person]) -> None:
    alice = working["alice"]
    name = "<img src=x onerror=alert(1)>.ipynb"
    book = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    where = f"/api/contents/{quote(name)}"
    assert alice.ask("PUT", where, {"type": "notebook", "content": book}).status_code == 201
    listed = alice.ask("GET", "/api/contents")
    assert listed.headers["Content-Type"].startswith("application/json")
    assert name in [each["name"] for each in listed.json()["content"]]
    for path in (f"/lab/tree/{quote(name)}", f"/files/{quote(name)}", f"/view/{quote(name)}", f"/tree/{quote(name)}"):
        shown = alice.get(f"/user/alice{path}")
        assert "<img src=x" not in shown.text, path
    assert alice.get(f"/hub/user/bob/lab/{quote(name)}").text.find("<img src=x") == -1


def test_killed_programs_come_back_and_kernels_go_on(
    node: HubNode, working: dict[str, Person], kernels: dict[str, Kernel], users: list[str]
) -> None:
    assert kernels["bob"].run("kept = 'open'; file = open('opened', 'w'); file.write('a'); print(1)") == "1"
    for name, service in (("hub", "hub"), ("bob", "launcher"), ("hub", "proxy"), ("hub", "tokens"), ("hub", "culler")):
        before = node.pid(name, service)
        os.kill(before, signal.SIGKILL)
        settles(lambda name=name, service=service, before=before: node.pid(name, service) not in {0, before})
    bob = working["bob"]
    settles(lambda: bob.answers("/hub/health"))
    settles(lambda: bob.answers("/user/bob/api/kernels"))
    again = Kernel(bob, kernels["bob"].id)
    assert again.run("file.write('b'); file.close(); print(kept, open('opened').read())") == "open ab"
    again.close()
    settles(lambda: node.kept("bob", "ready").stdout == "server runs\n")
    settles(lambda: bob.get("/hub/home").status_code == 200)


def test_a_second_run_changes_nothing(node: HubNode) -> None:
    places = [("hub", one) for one in ("hub", "proxy", "tokens", "culler")] + [("alice", "launcher")]
    before = {place: node.pid(*place) for place in places}
    runs = node.runs()
    node.order()
    assert [(run.hosts, run.changed) for run in node.facts("run")[runs:] if run.changed] == []
    assert node.runs() >= runs + 2
    assert {place: node.pid(*place) for place in places} == before


def test_a_token_that_ended_while_a_notebook_slept(node: HubNode, kernels: dict[str, Kernel]) -> None:
    node.order(lab_lake_token_seconds=6)
    token = "open(__import__('os').environ['CLACHAN_LAKE_TOKEN_FILE']).read().strip()"
    settles(lambda: node.token_age("alice") < 4)
    kernels["alice"].run(f"from clachan_lake import open_lake\nbefore = {token}\nold = open_lake()\nlen(old.arrays)")
    kernels["alice"].run("import time; time.sleep(9)")
    assert kernels["alice"].run(f"print({token} == before)") == "False"
    assert kernels["alice"].run("print(len(open_lake().arrays) > 0)") == "True"
    assert "is expired, expected one that holds" in kernels["alice"].run("len(old.arrays)")
    node.order(lab_lake_token_seconds=3600)


def test_an_idle_server_is_stopped(node: HubNode, working: dict[str, Person]) -> None:
    bob = working["bob"]
    bob.ask("PUT", "/api/contents/stays.txt", {"type": "file", "format": "text", "content": "here"})
    for each in bob.ask("GET", "/api/kernels").json():
        bob.ask("DELETE", f"/api/kernels/{each['id']}")
    node.order(lab_idle_seconds=5)
    settles(lambda: node.kept("bob", "ready").stdout == "server is not asked for\n", 90)
    node.order(lab_idle_seconds=3600)
    settles(lambda: bob.answers("/hub/health"))
    bob.open_server()
    assert bob.ask("GET", "/api/contents/stays.txt").json()["content"] == "here"


def test_backups_of_homes(node: HubNode, working: dict[str, Person]) -> None:
    alice = working["alice"]
    alice.open_server()
    before = alice.kernel()
    before.run(
        "import os; [os.path.exists(path) and os.unlink(path) for path in ('full', '/tmp/full', '/var/tmp/full2')]"
    )
    before.close()

    def text(content: str | None = None) -> str:
        body = {"type": "file", "format": "text", "content": content}
        found = alice.ask("GET" if content is None else "PUT", "/api/contents/work.txt", content and body)
        return str(found.json().get("content", "gone"))

    text("before")
    node.order(lab_backups=["first"])
    saved = json.loads(node.published("alice")["backups"])["first"]
    archive = node.home / "backups/home.alice/first.tar"
    assert (archive.stat().st_size, archive.stat().st_mode & 0o777) == (saved["size"], 0o600)
    text("after")
    node.order()
    assert json.loads(node.published("alice")["backups"])["first"] == saved, "made once"
    node.order(lab_restore={"user": "alice", "backup": "first"})
    alice.open_server()
    assert text() == "before"
    text("later")
    node.order(lab_backups=[])
    assert text() == "later", "brought back once"
    node.order(lab_restore={"user": "alice", "backup": "first", "word": "again"})
    alice.open_server()
    assert text() == "before"
    node.order(lab_restore={}, lab_delete_backups=True)
    assert not archive.exists()


def packages(folder: Path) -> dict[str, str]:
    """A folder of packages: `tiny`, which only says its version, and `lent`, which lends what a kernel needs, those of
    the Python that runs this test. Lines of a lock by what they install."""
    folder.mkdir()
    own = sysconfig.get_path("purelib")
    contents = {
        "tiny-1.0": {"tiny.py": "VERSION = '1.0'\n"},
        "tiny-2.0": {"tiny.py": "VERSION = '2.0'\n"},
        "lent-1.0": {"lent.pth": f"{own}\n"},
    }
    lines = {}
    for name, files in contents.items():
        path, about = folder / f"{name}-py3-none-any.whl", f"{name}.dist-info"
        with zipfile.ZipFile(path, "w") as archive:
            for file, text in files.items():
                archive.writestr(file, text)
            title, version = name.split("-")
            archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {title}\nVersion: {version}\n")
            archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{about}/RECORD", "")
        lines[name] = f"{title}=={version} --hash=sha256:{sha256(path.read_bytes())}\n"
    return lines


@pytest.fixture(scope="module")
def locks(node: HubNode) -> Iterator[dict[str, list[dict[str, str]]]]:
    """What `lab_environments` may be, by the version of `tiny`. Only the node's settings say where packages are."""
    lines = packages(node.home / "packages")
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(node.home / "packages")}
    (node.home / "envs/pip.shared.json").write_text(json.dumps(settings))
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            patch.delenv(name)  # the agent has none
        yield {
            version: [{"name": "sky", "lock": f"# of {{{{ 7 * 6 }}}}\n{lines['lent-1.0']}{lines[f'tiny-{version}']}"}]
            for version in ("1.0", "2.0")
        }


def shown(person: Person) -> set[str]:
    return set(person.ask("GET", "/api/kernelspecs").json()["kernelspecs"])


def version(person: Person) -> str:
    with closing(person.kernel("sky")) as kernel:
        return kernel.run("import tiny; print(tiny.VERSION)")


def test_an_environment_that_does_not_fit(
    node: HubNode, working: dict[str, Person], locks: dict[str, list[dict[str, str]]]
) -> None:
    place = node.disk("bob") / "environments"
    with closing(working["bob"].kernel()) as kernel:
        kernel.run("import os; free = os.statvfs('.'); big = (free.f_bavail * free.f_frsize >> 20) - 6")
        kernel.run("open('big', 'wb').write(bytes(big << 20))")
        node.want(lab_environments=locks["1.0"])
        node.until(lambda: node.said("bob").startswith("failed"), 120)
        assert f"environment sky: no room in {place}, expected more" in node.said("bob")
        # home and server stay, and nothing is left of what did not fit
        assert kernel.run("print(os.path.getsize('big') == big << 20 > 40 << 20)") == "True"
        assert [path.name for path in place.iterdir() if path.name.startswith("sky-")] == []
        kernel.run("os.unlink('big')")
    node.order()
    assert (place / "sky/bin/python").exists()


def test_environments_of_users(
    node: HubNode, working: dict[str, Person], locks: dict[str, list[dict[str, str]]]
) -> None:
    alice, link = working["alice"], node.disk("alice") / "environments/sky"
    node.order(lab_environments=locks["1.0"])
    first = os.readlink(link)
    uid = pwd.getpwnam(node.records["home.alice"]["clachan_instance"]["slot"]["user"]).pw_uid
    assert {path.lstat().st_uid for path in (link.parent / first).rglob("*")} == {uid}
    assert shown(alice) == {"science"}, "a server that runs stays as it is"
    alice.stop_server()
    settles(lambda: node.kept("alice", "ready").stdout == "server is not asked for\n")
    alice.open_server()
    assert (shown(alice), version(alice)) == ({"science", "sky"}, "1.0")
    with closing(alice.kernel("sky")) as running:
        tried = f"""
import tiny, os
for place in (tiny.__file__, {str(link)!r} + "/x", {str(link.parent)!r} + "/x", os.path.dirname(tiny.__file__) + "/x"):
    try:
        open(place, "a")
        print("written")
    except OSError as error:
        print(error.strerror)
try:
    os.rename({str(link)!r}, {str(link)!r} + "2")
except OSError as error:
    print(error.strerror)
"""
        assert running.run(tried).splitlines() == ["Read-only file system"] * 5
        # another lock, and the former one: each is there at once, and what runs goes on in its own
        node.order(lab_environments=locks["2.0"])
        assert (os.readlink(link) != first, version(alice)) == (True, "2.0")
        assert running.run("import wave; print(tiny.VERSION)") == "1.0"
    made = (link.parent / first / "clachan-environment").stat().st_mtime_ns
    node.order(lab_environments=locks["1.0"])
    assert (os.readlink(link), version(alice)) == (first, "1.0")
    assert (link.parent / first / "clachan-environment").stat().st_mtime_ns == made, "not made again"
    runs = node.runs()
    node.order()
    assert [run.hosts for run in node.facts("run")[runs:] if run.changed] == []


def test_an_environment_that_is_taken_out_leaves_nothing(node: HubNode) -> None:
    node.order(lab_environments=[])
    for name in ("alice", "bob"):
        etc = node.directory(name) / "etc"
        assert [path.name for path in (etc / "data/kernels").iterdir()] == ["science"]
        assert list((etc / "environments").iterdir()) == []
        assert [path.name for path in (node.disk(name) / "environments").glob("sky*")] == []


def test_a_user_who_goes_leaves_the_disk_only(node: HubNode, working: dict[str, Person], users: list[str]) -> None:
    image = node.home / "volumes/home.bob/home.img"
    disk, uid = node.disk("bob"), pwd.getpwnam(users[3]).pw_uid
    node.remove("bob")
    left = [each for each in psutil.process_iter() if each.uids().real == uid and each.status() != psutil.STATUS_ZOMBIE]
    assert (image.exists(), disk.exists(), left) == (True, False, [])
    assert groups(users[3]) == []
    assert not [path for path in Path("/sys/block").glob("loop*/loop/backing_file") if str(image) in path.read_text()]

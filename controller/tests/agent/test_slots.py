"""Reading a slot whose user may have put anything into it."""

import json
import os
import pwd
from pathlib import Path

import pytest
from clachan.agent import slots
from clachan.agent.layout import AgentError
from clachan.agent.settings import NodeConfig
from clachan.contract.inventory import Slot

ME = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    path = tmp_path / "s000"
    assert slots.prepare(path, ME, root=False)
    (path / "etc/services.d").mkdir()
    (path / "etc/promises.d").mkdir()
    return path


def write(slot: Path, name: str, document: object) -> None:
    (slot / "etc" / name).write_text(json.dumps(document))


SERVICE = {"command": ["/bin/sleep", "1"]}


def test_prepare_is_idempotent_and_mends(slot: Path) -> None:
    assert [oct((slot / name).stat().st_mode & 0o777) for name in (".", "etc", "log", "var")] == [
        *("0o750", "0o750", "0o750", "0o700")
    ]
    assert not slots.prepare(slot, ME, root=False)
    (slot / "var").chmod(0o777)
    assert slots.prepare(slot, ME, root=False)
    assert (slot / "var").stat().st_mode & 0o777 == 0o700


def test_prepare_follows_no_link(slot: Path, tmp_path: Path) -> None:
    (slot / "var").rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    (slot / "var").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="Not a directory"):
        slots.prepare(slot, ME, root=False)
    assert (tmp_path / "elsewhere").stat().st_mode & 0o777 == 0o755


def test_all_documents(slot: Path) -> None:
    write(slot, "services.d/web.json", SERVICE)
    write(slot, "promises.d/up.json", {"kind": "process", "service": "web"})
    write(slot, "published.json", {"url": "http://x", "port": 1})
    found = slots.read(slot)
    assert list(found.services) == ["web"]
    assert found.promises["up"].kind == "process"
    assert found.published == {"url": "http://x", "port": 1}
    assert found.requests == {}


def test_an_empty_slot_has_none(tmp_path: Path) -> None:
    slots.prepare(tmp_path / "s001", ME, root=False)
    assert slots.read(tmp_path / "s001") == slots.Documents()


def test_the_digest_of_a_service_has_its_files(slot: Path) -> None:
    write(slot, "services.d/web.json", {**SERVICE, "restart_on": ["etc/a.conf", "var/b"]})

    def digest() -> str:
        return slots.read(slot).digests["web"]

    seen = [digest()]
    (slot / "etc/a.conf").write_text("1")
    seen.append(digest())
    (slot / "var/b").write_text("1")
    seen.append(digest())
    write(slot, "services.d/web.json", {**SERVICE, "restart_on": ["etc/a.conf", "var/b"], "stop_seconds": 3})
    seen.append(digest())
    assert len(set(seen)) == 4
    assert digest() == seen[-1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "services.d/Web.json",
            "{}",
            "document services.d/'Web.json' of s000, expected NAME.json with a contract name",
        ),
        ("services.d/web", "{}", "document services.d/'web' of s000, expected NAME.json with a contract name"),
        ("services.d/web.json", "{", "document services.d/web.json: : Invalid JSON"),
        (
            "services.d/web.json",
            '{"command": []}',
            "document services.d/web.json: command: List should have at least 1",
        ),
        ("services.d/web.json", '{"command": ["x"], "user": "root"}', "web.json: user: Extra inputs are not permitted"),
        ("services.d/web.json", '{"command": ["x"], "directory": "../.."}', "web.json: directory: Value error, path"),
        ("services.d/web.json", " " * 65537, "document services.d/web.json: 65537 bytes, expected at most 65536"),
        ("promises.d/up.json", '{"kind": "magic"}', "document promises.d/up.json: : Input tag 'magic'"),
        ("published.json", '{"a": null}', "document published.json: a."),
    ],
)
def test_a_wrong_document_is_named(slot: Path, name: str, content: str, message: str) -> None:
    (slot / "etc" / name).write_text(content)
    with pytest.raises(AgentError) as caught:
        slots.read(slot)
    assert message in str(caught.value)


def test_a_file_that_is_being_written_is_not_read(slot: Path) -> None:
    (slot / "etc/services.d/.web.json.tmp").write_text("{")
    assert slots.read(slot).services == {}


def test_too_many_documents(slot: Path) -> None:
    for number in range(257):
        write(slot, f"promises.d/p{number}.json", {"kind": "disk_space", "min_free_mib": 0})
    with pytest.raises(AgentError, match=r"promises\.d of s000: 257 documents, expected at most 256"):
        slots.read(slot)


@pytest.mark.parametrize("what", ["link", "pipe", "folder", "linked folder"])
def test_only_regular_files_are_read(slot: Path, tmp_path: Path, what: str) -> None:
    path = slot / "etc/services.d/web.json"
    if what == "link":
        (tmp_path / "real").write_text(json.dumps(SERVICE))
        path.symlink_to(tmp_path / "real")
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        (slot / "etc/services.d").rename(tmp_path / "moved")
        (slot / "etc/services.d").symlink_to(tmp_path / "moved")
    with pytest.raises(AgentError, match=r"expected (regular files|one)"):
        slots.read(slot)


@pytest.mark.parametrize("what", ["link", "pipe", "folder", "none", "linked folder"])
def test_files_to_restart_on_are_read_without_following(slot: Path, tmp_path: Path, what: str) -> None:
    (tmp_path / "secret").write_text("root's")
    path = slot / "var/sub/x"
    path.parent.mkdir()
    if what == "link":
        path.symlink_to(tmp_path / "secret")
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "linked folder":
        path.parent.rmdir()
        path.parent.symlink_to(tmp_path)
    expected = {
        "link": "Too many levels of symbolic links",
        "pipe": "not a regular file",
        "folder": "not a regular file",
        "none": "No such file or directory",
        "linked folder": "Not a directory",
    }
    assert slots.file_digest(slot, "var/sub/x") == expected[what]


def test_emptying_touches_nothing_outside(slot: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("stays")
    (slot / "var/link").symlink_to(tmp_path / "outside")
    (slot / "link").symlink_to(tmp_path / "outside")
    (slot / "var/deep/er").mkdir(parents=True)
    slots.empty(slot)
    assert list(slot.iterdir()) == []
    assert (tmp_path / "outside/file").read_text() == "stays"


def test_used_bytes_follows_no_link(slot: Path, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 1_000_000)
    (slot / "var/link").symlink_to(tmp_path / "big")
    (slot / "var/file").write_bytes(b"x" * 100_000)
    assert 100_000 <= slots.used_bytes(slot) < 200_000


def test_the_tail_of_a_log(slot: Path, tmp_path: Path) -> None:
    (slot / "log/web.log").write_text("".join(f"line {n}\n" for n in range(1000)))
    assert slots.tail(slot, "web", 2, 10_000) == "line 998\nline 999"
    assert slots.log_names(slot) == ["web"]
    (slot / "log/evil.log").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        slots.tail(slot, "evil", 2, 10_000)


def test_only_slots_of_this_node(tmp_path: Path) -> None:
    config = NodeConfig.model_validate(
        {
            "controller_url": "https://x",
            "node_name": "here",
            "mode": "root",
            "slots": 2,
            "slots_directory": "/slots",
            "users": ["u0", "u1"],
            "supervisor_socket": "/x",
            "platform_path": "/y",
        }
    )

    def slot(index: int = 1, user: str = "u1", directory: str = "/slots/s001") -> Slot:
        return Slot.model_validate(
            {
                "name": f"s{index:03d}",
                "index": index,
                "user": user,
                "directory": directory,
                "addresses": {"ipv4": "127.0.0.1", "ipv6": "::1"},
                "ports": {"first": 1, "count": 1},
                "limits": {"memory_mib": 1, "tasks": 1, "cpu_milli": 1},
            }
        )

    slots.check_slot(slot(), config)
    with pytest.raises(AgentError, match="slot s001: /slots/s001 of root, expected /slots/s001 of u1"):
        slots.check_slot(slot(user="root"), config)
    with pytest.raises(AgentError, match="slot s001: /etc of u1, expected /slots/s001 of u1"):
        slots.check_slot(slot(directory="/etc"), config)
    with pytest.raises(AgentError, match="slot 2: this node has 2 slots, expected an index below that"):
        slots.check_slot(slot(index=2), config)

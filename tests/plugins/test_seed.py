"""Module seed: the bytes of the disk as the kernel and a guest's programs read them, and no secret anywhere else."""

import base64
import json
import os
import pwd
import subprocess
from pathlib import Path
from typing import Any

import pytest

from . import vm_node
from .payloads import payloads
from .vm_node import USER, Node

node = vm_node.node
Options = dict[str, Any]
TOKEN = "jt_0123456789abcdefghijklmnop"


def options(node: Node, slot: Path, **more: Any) -> Options:
    return {
        "path": str(slot / "var" / "seed.iso"),
        "owner": USER,
        "instance_id": "0a9a4c4e-4d55-4f5c-9d5e-0f1b3c3f2a11",
        "hostname": "lab.hadoop.worker_1",
        "host_key": str(slot / "log" / "host_key"),
        "authorized_keys": ["ssh-ed25519 AAAA operator"],
        "interfaces": [
            {
                "mac": "52:54:00:AA:bb:cc",
                "addresses": ["10.96.0.19/32", "fd00:1::13/128"],
                "gateways": ["169.254.1.1", "fe80::1"],
                "nameservers": ["9.9.9.9"],
            }
        ],
        "files": [{"path": "/etc/secret", "content": "s3cret-\u00e9\n", "permissions": "0600"}],
    } | more


def with_token(slot: Path, token: str = TOKEN) -> Options:
    path = slot / "log" / "join.json"
    path.write_text(json.dumps({"node": "vm_worker", "token": token, "generation": "g", "expires": "2031"}))
    return {"url": "https://controller.clachan.internal:20060", "token_file": str(path)}


READ = """
import io, json, pycdlib, sys
iso, found = pycdlib.PyCdlib(), {}
iso.open(sys.argv[1])
for child in iso.list_children(rr_path="/"):
    if child.is_file():
        name = child.rock_ridge.name().decode()
        for place in ({"rr_path": "/" + name}, {"joliet_path": "/" + name}):
            out = io.BytesIO()
            iso.get_file_from_iso_fp(out, **place)
            assert found.setdefault(name, out.getvalue().decode()) == out.getvalue().decode()
print(json.dumps(found))
"""


def files(path: str) -> dict[str, str]:
    """The seed's files by name, by both of the disk's lists of names."""
    done = subprocess.run(["/usr/bin/python3", "-c", READ, path], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_twelve_steps(node: Node) -> None:
    slot = node.slot()
    seed = options(node, slot, join=with_token(slot))
    made = node.steps("seed", seed)
    assert made[0]["actions"] == made[1]["actions"] == ["host key made", "written"]
    assert made[1]["diff"]["before"] == {}
    after = made[1]["diff"]["after"]
    assert after["hostname"] == "lab.hadoop.worker_1"
    assert after["files"] == ["/etc/secret", "/var/lib/clachan/node/join.json"]
    found = os.stat(seed["path"])
    assert (found.st_uid, found.st_mode & 0o777) == (pwd.getpwnam(USER).pw_uid, 0o600)
    assert made[1]["host_public_key"].startswith("ssh-ed25519 ")
    assert (slot / "log" / "host_key.pub").read_text().split()[:2] == made[1]["host_public_key"].split()[:2]

    changed = node.steps("seed", seed | {"hostname": "other"})
    assert changed[1]["actions"] == ["written anew"]
    assert changed[1]["diff"]["before"]["hostname"] == "lab.hadoop.worker_1"
    assert changed[1]["diff"]["after"]["hostname"] == "other"
    assert changed[1]["host_public_key"] == made[1]["host_public_key"]

    gone = node.steps("seed", seed | {"state": "absent"})
    assert gone[1]["actions"] == ["removed", "host key removed"]
    assert sorted(path.name for path in slot.glob("*/*")) == ["join.json"]
    said = json.dumps([one | {"invocation": None} for one in [*made, *changed, *gone]])
    assert TOKEN not in said
    assert "s3cret" not in json.dumps([*made, *changed, *gone])
    assert "PRIVATE" not in said


def test_what_a_guest_reads(node: Node) -> None:
    slot = node.slot()
    seed = options(node, slot, join=with_token(slot))
    node.ok("seed", seed)
    texts = files(seed["path"])
    assert sorted(texts) == ["meta-data", "network-config", "user-data"]
    meta = json.loads(texts["meta-data"])
    assert meta["instance-id"].startswith(seed["instance_id"] + "-")
    assert meta["local-hostname"] == "lab.hadoop.worker_1"
    first, _, rest = texts["user-data"].partition("\n")
    user = json.loads(rest)
    assert first == "#cloud-config"
    assert user["ssh_keys"]["ed25519_private"] == (slot / "log" / "host_key").read_text()
    assert user["ssh_keys"]["ed25519_public"].split()[:2] == (slot / "log" / "host_key.pub").read_text().split()[:2]
    assert user["ssh_authorized_keys"] == ["ssh-ed25519 AAAA operator"]
    written = {
        one["path"]: (base64.b64decode(one["content"]).decode(), one["permissions"]) for one in user["write_files"]
    }
    assert written["/etc/secret"] == ("s3cret-\u00e9\n", "0600")
    join, mode = written["/var/lib/clachan/node/join.json"]
    assert json.loads(join) == {"url": seed["join"]["url"], "node": "vm_worker", "token": TOKEN}
    assert mode == "0600"
    assert json.loads(texts["network-config"]) == {
        "version": 2,
        "ethernets": {
            "net0": {
                "match": {"macaddress": "52:54:00:aa:bb:cc"},
                "addresses": ["10.96.0.19/32", "fd00:1::13/128"],
                "routes": [
                    {"to": "0.0.0.0/0", "via": "169.254.1.1", "on-link": True},
                    {"to": "::/0", "via": "fe80::1", "on-link": True},
                ],
                "nameservers": {"addresses": ["9.9.9.9"]},
                "accept-ra": False,
            }
        },
    }


def test_the_same_options_give_the_same_bytes(node: Node) -> None:
    slot, other = node.slot(), node.slot()
    first = options(node, slot)
    node.ok("seed", first)
    second = first | {"path": str(other / "var" / "seed.iso")}
    node.ok("seed", second)
    data = Path(first["path"]).read_bytes()
    assert data == Path(second["path"]).read_bytes()
    assert data[16 * 2048 + 40 : 16 * 2048 + 72].strip() == b"cidata"
    # another day, another time zone
    node.libvirtd.execute(["rm", second["path"]])
    os.environ["TZ"] = "Asia/Kolkata"
    try:
        node.ok("seed", second)
    finally:
        del os.environ["TZ"]
    assert data == Path(second["path"]).read_bytes()


def test_an_emptied_seed_has_no_secret_left(node: Node) -> None:
    slot = node.slot()
    seed = options(node, slot, join=with_token(slot))
    node.ok("seed", seed)
    path = Path(seed["path"])
    private = (slot / "log" / "host_key").read_text()
    before, inode = files(seed["path"])["meta-data"], path.stat().st_ino
    with path.open("rb") as opened:  # as QEMU has it open
        emptied = node.steps("seed", seed | {"state": "emptied"})
        left = opened.read()
    assert emptied[1]["actions"] == ["emptied"]
    assert (path.stat().st_ino, path.read_bytes()) == (inode, left)
    for secret in (TOKEN, "s3cret", private.splitlines()[2], "write_files", "operator"):
        assert secret.encode() not in left
        assert base64.b64encode(secret.encode())[:-4] not in left
    assert files(seed["path"])["meta-data"] == before
    assert files(seed["path"])["user-data"] == "#cloud-config\n{}\n"
    # killed half way: broken bytes are emptied as well
    with path.open("r+b") as file:
        file.seek(16 * 2048)
        file.write(b"\0" * 4096)
    assert [node.ok("seed", seed | {"state": "emptied"})["changed"] for _ in range(2)] == [True, False]


def test_another_token_is_another_instance(node: Node) -> None:
    slot = node.slot()
    ids = []
    for token in (TOKEN, TOKEN[::-1]):
        done = node.ok("seed", options(node, slot, join=with_token(slot, token)))
        ids.append(done["diff"]["after"]["instance_id"])
    assert len(set(ids)) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"hostname": "A b"}, "hostname 'A b': expected at most 64 lower-case letters"),
        ({"hostname": "a" * 65}, "expected at most 64 lower-case letters"),
        ({"instance_id": "a\nb"}, "instance_id 'a\\nb': expected at most 128 letters"),
        ({"authorized_keys": ["a\nb"]}, "authorized_keys 'a\\nb': expected one line"),
        ({"interfaces": [{"mac": "x"}]}, "interfaces.mac 'x': expected a unicast address"),
        (
            {"interfaces": [{"mac": "52:54:00:00:00:01", "addresses": ["x"]}]},
            "interfaces.addresses 'x': expected an IP",
        ),
        ({"files": [{"path": "x", "content": ""}]}, "files.path 'x': expected an absolute path without '..'"),
        (
            {"files": [{"path": "/x", "content": "", "permissions": "rw"}]},
            "files.permissions 'rw': expected four octal",
        ),
        ({"join": {"url": "x", "token_file": "/nowhere"}}, "join.token_file /nowhere: nothing there, expected a token"),
        ({"join": {"url": "x", "token_file": "/etc/passwd"}}, "/etc/passwd: expected JSON with node and token"),
        ({"owner": "no such"}, "owner 'no such': expected a user of this machine"),
    ],
)
def test_what_is_not_sane_is_refused(node: Node, more: Options, message: str) -> None:
    slot = node.slot()
    refused = node.run("seed", options(node, slot) | more, check=True)
    assert refused["failed"]
    assert message in refused["msg"]


def test_payloads_arrive_byte_for_byte(node: Node, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    texts = payloads(canary)
    slot = node.slot()
    wanted = [{"path": f"/etc/{name}", "content": text} for name, text in texts.items()]
    seed = options(node, slot, files=wanted)
    node.ok("seed", seed)
    assert node.ok("seed", seed)["changed"] is False
    user = json.loads(files(seed["path"])["user-data"].partition("\n")[2])
    found = {one["path"]: base64.b64decode(one["content"]).decode() for one in user["write_files"]}
    assert found == {one["path"]: one["content"] for one in wanted}
    assert not canary.exists()


def test_links_are_not_followed(node: Node) -> None:
    slot = node.slot()
    target = node.folder / "precious"
    target.write_text("precious")
    (slot / "var" / "seed.iso").symlink_to(target)
    refused = node.run("seed", options(node, slot))
    assert refused["failed"]
    assert target.read_text() == "precious"
    target.unlink()

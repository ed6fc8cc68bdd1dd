"""The first-boot program of a guest, its parts that need no machine: run with its paths below a folder."""

import importlib.machinery
import importlib.util
import json
import os
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "files/guest/usr/local/lib/clachan/clachan-seed"
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nx\n-----END OPENSSH PRIVATE KEY-----"


@pytest.fixture
def seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("clachan_seed", str(PROGRAM))
    spec = importlib.util.spec_from_loader("clachan_seed", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    for name in ("STATE", "NETWORKS", "HOST_KEY", "ROOT_KEYS", "ETC"):
        monkeypatch.setattr(module, name, str(tmp_path) + getattr(module, name))
    monkeypatch.setattr(module, "call", lambda *_words, **_more: None)
    monkeypatch.setattr(module, "name_machine", lambda _name: None)
    return module


def texts(identity: str = "i-1", user: Any = None, network: Any = None, meta: Any = None) -> dict[str, str]:
    found = {"meta-data": json.dumps({"instance-id": identity, **(meta or {})})}
    found["user-data"] = "#cloud-config\n" + json.dumps(user or {})
    if network is not None:
        found["network-config"] = json.dumps(network)
    return found


def ethernet(**more: Any) -> dict[str, Any]:
    return {"version": 2, "ethernets": {"net0": {"match": {"macaddress": "52:54:00:aa:bb:cc"}, **more}}}


def test_a_whole_seed(seed: ModuleType, tmp_path: Path) -> None:
    target = tmp_path / "srv/deep/text"
    user = {
        "ssh_keys": {"ed25519_private": KEY, "ed25519_public": "ssh-ed25519 AAAA host"},
        "ssh_authorized_keys": ["ssh-ed25519 BBBB one", "ssh-ed25519 CCCC two"],
        "write_files": [
            {"path": str(target), "content": "{{ 7 * 7 }}\n", "permissions": "0600"},
            {"path": str(tmp_path / "srv/bytes"), "content": "AAEC", "encoding": "b64"},
        ],
    }
    routes = [
        {"to": "0.0.0.0/0", "via": "169.254.1.1", "on-link": True},
        {"to": "::/0", "via": "fe80::1", "on-link": True},
    ]
    network = ethernet(
        addresses=["10.1.2.3/32", "fd00::3/128"],
        nameservers={"addresses": ["10.0.0.53"]},
        routes=routes,
        **{"accept-ra": False},
    )
    assert seed.apply(texts(user=user, network=network, meta={"local-hostname": "home-web"})) is True
    assert (tmp_path / "etc/hostname").read_text() == "home-web\n"
    assert "127.0.1.1 home-web\n" in (tmp_path / "etc/hosts").read_text()
    assert (tmp_path / "etc/ssh/ssh_host_ed25519_key").read_text() == KEY + "\n"
    assert (tmp_path / "etc/ssh/ssh_host_ed25519_key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "root/.ssh/authorized_keys").read_text() == "ssh-ed25519 BBBB one\nssh-ed25519 CCCC two\n"
    assert (tmp_path / "root/.ssh").stat().st_mode & 0o777 == 0o700
    assert target.read_text() == "{{ 7 * 7 }}\n"
    assert target.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "srv/bytes").read_bytes() == b"\0\1\2"
    assert (tmp_path / "etc/resolv.conf").read_text() == "nameserver 10.0.0.53\n"
    assert (tmp_path / "etc/systemd/network/10-seed-net0.network").read_text() == (
        "[Match]\nMACAddress=52:54:00:aa:bb:cc\n[Network]\nDHCP=no\nIPv6AcceptRA=no\nLinkLocalAddressing=ipv6\n"
        "IPv6DuplicateAddressDetection=0\nAddress=10.1.2.3/32\nAddress=fd00::3/128\n"
        "[Route]\nDestination=0.0.0.0/0\nGateway=169.254.1.1\nGatewayOnLink=yes\n"
        "[Route]\nDestination=::/0\nGateway=fe80::1\nGatewayOnLink=yes\n"
    )


def test_a_seed_is_applied_once_and_another_again(seed: ModuleType, tmp_path: Path) -> None:
    first = texts(meta={"local-hostname": "one"})
    assert [seed.apply(first), seed.apply(first)] == [True, False]
    assert seed.apply(texts("i-2", meta={"local-hostname": "two"})) is True
    assert (tmp_path / "etc/hostname").read_text() == "two\n"


def test_a_seed_that_failed_is_tried_again(seed: ModuleType, tmp_path: Path) -> None:
    wrong = texts(user={"write_files": [{"path": "relative", "content": "x"}]})
    with pytest.raises(seed.SeedError, match=r"^file 'relative' of write_files: expected an absolute path"):
        seed.apply(wrong)
    assert seed.applied() is None
    assert seed.apply(texts()) is True


def test_interfaces_of_an_earlier_seed_go(seed: ModuleType, tmp_path: Path) -> None:
    seed.apply(texts("i-1", network=ethernet(addresses=["10.1.2.3/32"])))
    networks = tmp_path / "etc/systemd/network"
    (networks / "80-dhcp.network").write_text("")
    other = {"version": 2, "ethernets": {"eth1": {"dhcp4": True}}}
    seed.apply(texts("i-2", network={"network": other}))
    assert sorted(path.name for path in networks.iterdir()) == ["10-seed-eth1.network", "80-dhcp.network"]
    assert "Name=eth1\n[Network]\nDHCP=ipv4\n" in (networks / "10-seed-eth1.network").read_text()


def test_without_a_key_one_is_made(seed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(seed, "make_host_key", lambda: made.append(1))
    seed.apply(texts())
    assert made == [1]


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"meta": {"instance-id": ""}}, "instance-id of meta-data: '', expected a text"),
        ({"meta": {"local-hostname": "a\nb"}}, "host name: 'a\\nb', expected lower-case letters"),
        ({"user": {"write_files": [{"path": "/a/../b"}]}}, "file '/a/../b' of write_files: expected an absolute path"),
        (
            {"user": {"write_files": [{"path": "/a", "encoding": "gz"}]}},
            "file /a of write_files: encoding 'gz', expected b64",
        ),
        ({"network": {"ethernets": {"a\nb": {}}}}, "interface 'a\\nb' of network-config: expected letters"),
        ({"network": ethernet(match={"macaddress": "x\n"})}, "macaddress of interface net0: 'x\\n', expected six"),
    ],
)
def test_a_wrong_seed_is_told(seed: ModuleType, parts: dict[str, Any], text: str) -> None:
    with pytest.raises(seed.SeedError) as told:
        seed.apply(texts(**parts))
    assert str(told.value).startswith(text)


def test_user_data_of_another_kind_is_told(seed: ModuleType) -> None:
    with pytest.raises(seed.SeedError) as told:
        seed.apply({**texts(), "user-data": "#!/bin/sh\nreboot\n"})
    assert str(told.value) == "seed file user-data: its first line is another, expected #cloud-config"


@pytest.mark.parametrize("value", ["10.0.0.1/33\nDHCP=yes", "x"])
def test_addresses_are_addresses(seed: ModuleType, value: str) -> None:
    with pytest.raises(ValueError, match="does not appear"):
        seed.apply(texts(network=ethernet(addresses=[value])))
    assert seed.applied() is None


def test_yaml_is_read_where_there_is_a_reader(seed: ModuleType) -> None:
    pytest.importorskip("yaml", reason="this machine cannot: no PyYAML")
    assert seed.parse("meta-data", "instance-id: i-1\nlocal-hostname: web\n") == {
        "instance-id": "i-1",
        "local-hostname": "web",
    }


def test_the_disk_is_known_by_its_label(seed: ModuleType, tmp_path: Path) -> None:
    blocks, devices = tmp_path / "blocks", tmp_path / "devices"
    for folder in (blocks, devices):
        folder.mkdir()
    for name, label in (("vda", b"root"), ("vdb", b"CIDATA"), ("vdc", b"other")):
        (blocks / name).mkdir()
        header = struct.pack("B5sB33x32s", 1, b"CD001", 1, label.ljust(32))
        (devices / name).write_bytes(b"\0" * 16 * 2048 + header)
    (blocks / "sr0").mkdir()
    assert seed.find_disk(str(blocks), str(devices)) == os.fspath(devices / "vdb")
    (devices / "vdb").unlink()
    assert seed.find_disk(str(blocks), str(devices)) is None

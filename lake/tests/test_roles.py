"""The roles lake and forwarder: converged by Ansible, their programs started as their slots say, doing their work."""

import json
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from clachan_lake.opening import open_lake

from .making import tone, wait_for, wav
from .test_forward_records import USAGE_TOKEN, Controller, controller, record

__all__ = ["controller"]
ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
NODE = "5a0f0d4e-0000-4000-8000-0000000000aa"


class Home:
    """A node's home with slots, the platform collection, and a slice."""

    def __init__(self, directory: Path, address: str) -> None:
        self.directory = directory
        self.address = address
        self.records: dict[str, Any] = {}
        platform = directory / "collections/ansible_collections/clachan/platform"
        platform.mkdir(parents=True)
        for part in ("meta", "plugins", "roles", "playbooks"):
            (platform / part).symlink_to(ROOT / part)
        (directory / "node").mkdir()
        (directory / "node/node.json").write_text(json.dumps({"id": NODE, "name": "here"}))
        (directory / "envs").mkdir()
        (directory / "envs/lake").symlink_to(BIN.parent)
        (directory / "clachan.yml").write_text(
            json.dumps({"plugin": "clachan.platform.inventory", "slice": "slice.json", "home": str(directory)})
        )
        self.add_node()

    def add_node(self) -> None:
        addresses = {"ipv4": "127.9.0.0/20", "ipv6": "fd00:1::/64", "reach": None}
        node = {"id": NODE, "name": "here", "labels": {}, "addresses": addresses, "owner": None, "state": "active"}
        self.records["here"] = {"clachan_node": node}

    def add(self, name: str, index: int, sealed: list[str], **parameters: Any) -> Path:
        slot = self.directory / "slots" / f"s{index:03}"
        for part in ("etc", "log", "var"):
            (slot / part).mkdir(parents=True)
        instance = {
            "id": f"00000000-0000-4000-8000-{index:012}",
            "revision": 1,
            "path": f"home.{name}",
            "tenant": "home",
            "software": f"clachan.platform.{name}",
            "digest": "ab" * 32,
            "type": "main",
            "state": "started",
            "node": "here",
            "slot": {
                "name": f"s{index:03}",
                "index": index,
                "user": pwd.getpwuid(os.geteuid()).pw_name,
                "directory": str(slot),
                "addresses": {"ipv4": self.address, "ipv6": f"fd00:1::{index + 16:x}"},
                "ports": {"first": free_port(self.address), "count": 20},
                "limits": {"memory_mib": 64, "tasks": 64, "cpu_milli": 50},
            },
            "parent": None,
            "children": {},
            "sealed": sealed,
        }
        self.records[f"home.{name}"] = {"clachan_instance": instance, **parameters}
        return slot

    def converge(self, *options: str) -> str:
        hosts = sorted(set(self.records) - {"here"})
        inventory = {
            "format": 1,
            "platform": NODE,
            "node": "here",
            "records": self.records,
            "groupings": {"nodes": ["here"], "instances": hosts},
            "software": {},
            "supplies": [],
        }
        (self.directory / "slice.json").write_text(json.dumps({"clachan_inventory": inventory}))
        variables = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(self.directory),
            "LANG": "C.UTF-8",
            "CLACHAN_HOME": str(self.directory),
            "ANSIBLE_HOME": str(self.directory / "ansible"),
            "ANSIBLE_COLLECTIONS_PATH": str(self.directory / "collections"),
            "ANSIBLE_NOCOLOR": "1",
        }
        command = [str(BIN / "ansible-playbook"), "-i", "clachan.yml", "--diff", "clachan.platform.converge", *options]
        done = subprocess.run(command, cwd=self.directory, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def published(self, slot: Path) -> dict[str, Any]:
        return json.loads((slot / "etc/published.json").read_text())


def free_port(address: str) -> int:
    import socket

    with socket.socket() as taken:
        taken.bind((address, 0))
        return int(taken.getsockname()[1])


def start(slot: Path, name: str) -> "subprocess.Popen[bytes]":
    """As the agent's launcher does."""
    service = json.loads((slot / "etc/services.d" / f"{name}.json").read_text())
    with (slot / "log" / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            service["command"],
            cwd=slot / service.get("directory", "var"),
            stderr=log,
            env=service.get("environment", {}),
        )


@pytest.fixture
def running() -> "Iterator[list[subprocess.Popen[bytes]]]":
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in reversed(processes):
        process.terminate()
        process.wait(20)


@pytest.mark.slow
def test_lake_and_forwarder_do_their_work(tmp_path: Path, running: "list[subprocess.Popen[bytes]]") -> None:
    home = Home(tmp_path, "127.77.0.1")
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    (recordings / "a440.wav").write_bytes(wav(tone(440, 1)))
    secret = TOKENS["lake_token"]
    lake = home.add("lake", 0, list(TOKENS), **TOKENS, lake_idle_seconds=60)
    home.converge()
    published = home.published(lake)
    assert (published["token"], published["certificate"]) == (secret, "")
    forwarder = home.add(
        "forwarder",
        1,
        ["forwarder_token"],
        forwarder_directory=str(recordings),
        forwarder_url=published["url"],
        forwarder_token=published["ingest_token"],
        forwarder_ca=published["certificate"],
        forwarder_stable_seconds=0,
    )
    first = home.converge()
    assert not [token for token in TOKENS.values() if token in first]
    assert re.search(r"home\.lake +: ok=\d+ +changed=0 ", first)
    assert "changed=0" in home.converge().partition("PLAY RECAP")[2]
    for slot, token in ((lake, secret), (forwarder, TOKENS["lake_ingest_token"])):
        assert (slot / "etc/token").read_text() == token + "\n"
        assert (slot / "etc/token").stat().st_mode & 0o777 == 0o640
        assert token not in "".join(path.read_text() for path in (slot / "etc/services.d").iterdir())
    running.append(start(lake, "lake"))
    answers = json.loads((lake / "etc/promises.d/answers.json").read_text())
    wait_for(lambda: answered(answers["url"]), "healthz", 30)
    running.append(start(forwarder, "forwarder"))
    headers = {"Authorization": f"Bearer {secret}"}
    wait_for(
        lambda: (
            requests.get(f"{published['url']}/arrays/meta?name=a440.wav", headers=headers, timeout=9).status_code == 200
        ),
        "array",
        30,
    )
    ships = json.loads((forwarder / "etc/promises.d/ships.json").read_text())
    wait_for(lambda: (forwarder / "var/status.json").exists(), "status")

    def checked() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(ships["command"], capture_output=True, text=True, check=False)

    # the forwarder says it a moment after the lake has it
    wait_for(lambda: checked().stdout.startswith("files: 1 done; lag"), "the promise's message")
    assert (checked().returncode, checked().stderr) == (0, "")
    for name, statuses in {"ingest_token": [204, 200, 403, 403], "work_token": [403, 200, 204, 204]}.items():
        assert [status(published, name, *one) for one in TRIED] == statuses
    assert Path(published["socket"]).is_socket()
    assert Path(published["blobs"]).is_dir()


TRIED = [
    ("POST", "/ingest/raw?reference=tried"),
    ("GET", "/arrays"),
    ("DELETE", "/streams/meta?name=tried"),
    ("POST", "/jobs/take?worker=tried&slot=0"),
]


def status(published: dict[str, Any], token: str, method: str, path: str) -> int:
    """Of an answer to who holds a published token."""
    headers = {"Authorization": f"Bearer {published[token]}"}
    body = b"a" if "/ingest/" in path else None
    return requests.request(method, published["url"] + path, headers=headers, data=body, timeout=9).status_code


def answered(url: str, ca: Path | None = None) -> bool:
    try:
        return requests.get(url, timeout=5, verify=str(ca) if ca else None).status_code == 200
    except requests.ConnectionError:
        return False


def records(published: dict[str, Any], name: str, ca: Path) -> list[dict[str, Any]]:
    """The lines of a stream."""
    answer = requests.get(
        f"{published['url']}/streams/data",
        params={"name": name},
        headers={"Authorization": f"Bearer {published['token']}"},
        timeout=9,
        verify=str(ca),
    )
    return [json.loads(line) for line in answer.content.splitlines()] if answer.status_code == 200 else []


TOKENS = {f"lake_{name}token": f"s3cret-{name}token-of-the-lake" for name in ("", "ingest_", "work_")}
POLICIES = [
    {"name": "raw"},
    {"name": "log.s", "pattern": r"(?P<host>\w+)/(?P<file>.+)", "target": "logs/{host}/{file}", "keep_bytes": 4096},
]
COLUMNS = {"window_start": "datetime64[ms]", "path": "S64", "meter": "S32", "quantity": "int64"}
METERED = {
    "name": "metered",
    "function": "jsonl",
    "source": {"kind": "stream", "pattern": "usage"},
    "output": "metered",
    "options": {"columns": [{"name": name, "dtype": dtype} for name, dtype in COLUMNS.items()]},
}


@pytest.mark.slow
def test_behind_tls_with_policies_metrics_and_usage(
    tmp_path: Path, running: "list[subprocess.Popen[bytes]]", controller: str
) -> None:
    Controller.records = [record(number) for number in range(3)]
    home = Home(tmp_path, "127.77.0.2")
    secret = TOKENS["lake_token"]
    options = {"lake_tls": True, "lake_policies": POLICIES, "lake_transformations": [METERED]}
    lake = home.add("lake", 0, list(TOKENS), **TOKENS, **options)
    home.converge("--check")
    assert list((lake / "var").iterdir()) == list((lake / "etc").iterdir()) == []
    home.converge()
    published = home.published(lake)
    assert published["url"].startswith("https://127.77.0.2:")
    assert (
        published["certificate"]
        == (lake / "var/certificate.pem").read_text()
        == (lake / "etc/certificate.pem").read_text()
    )
    assert (lake / "var/key.pem").stat().st_mode & 0o777 == 0o600
    files = tmp_path / "files" / "web"
    files.mkdir(parents=True)
    (files / "access.log").write_text("line\n" * 400)
    forwarder = home.add(
        "forwarder",
        1,
        ["forwarder_token", "forwarder_usage_token"],
        forwarder_directory=str(files.parent),
        forwarder_url=published["url"],
        forwarder_token=published["ingest_token"],
        forwarder_ca=published["certificate"],
        forwarder_policy="log.s",
        forwarder_gzip=True,
        forwarder_metrics=True,
        forwarder_usage_url=controller,
        forwarder_usage_token=USAGE_TOKEN,
        forwarder_stable_seconds=0,
    )
    first = home.converge()
    assert not {word for word in (*TOKENS.values(), USAGE_TOKEN) if word in first}
    assert re.search(r"home\.lake +: ok=\d+ +changed=0 ", first)
    assert "changed=0" in home.converge().partition("PLAY RECAP")[2]
    running.append(start(lake, "lake"))
    ca = lake / "etc/certificate.pem"
    wait_for(lambda: answered(f"{published['url']}/healthz", ca), "healthz", 30)
    # the promise of the agent does not look at the certificate, which is the slot's own
    assert json.loads((lake / "etc/promises.d/answers.json").read_text())["url"] == f"{published['url']}/healthz"
    settings = json.loads((forwarder / "etc/forwarder.json").read_text())
    settings["records_flush_seconds"] = 1
    (forwarder / "etc/forwarder.json").write_text(json.dumps(settings))
    running.append(start(forwarder, "forwarder"))
    wait_for(lambda: len(records(published, "usage", ca)) == 3, "usage", 30)
    wait_for(lambda: records(published, "metrics/here", ca), "metrics", 30)
    assert records(published, "usage", ca) == Controller.records
    with open_lake(published["url"], token=secret, ca=ca) as opened:
        wait_for(lambda: "logs/web/access.log" in opened.streams, "file", 30)
        wait_for(lambda: opened.streams["logs/web/access.log"].size == 2000, "file", 30)
        wait_for(lambda: "metered" in opened.arrays and len(opened.arrays["metered"]) == 3, "metered", 30)
        assert opened.arrays["metered"][:]["quantity"].tolist() == [0, 1, 2]

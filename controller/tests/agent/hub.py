"""A hub with its users' places, run by a real agent as root: unix users, disks, limits, a lake; and who works there,
over HTTP as a browser does."""

import hashlib
import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import websocket
import yaml
from clachan.contract.inventory import Inventory

from .conftest import BIN, NODE, ROOT, Artifact, Node, wait_for

LAKE_SECRET = "long-lived-token-of-the-lake"
HIDDEN = ("/home/", "/tmp/", "/var/tmp/", "/run/")
"""What a user's sandbox has others in the place of; these tests' environments lead to this checkout's."""
NEEDS = [
    pytest.mark.slow,
    pytest.mark.heavy,
    pytest.mark.guest,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="this machine cannot: no root, who makes unix users and disks"),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="this machine cannot: no bubblewrap"),
    pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="this machine cannot: no loop devices"),
    pytest.mark.skipif(
        str(ROOT).startswith(HIDDEN), reason=f"this machine cannot: {ROOT} is below a folder that the sandbox hides"
    ),
]


def completed(role: str, given: dict[str, Any]) -> dict[str, Any]:
    """The parameters as the controller completes them: defaults, and secrets that nobody gave."""
    folder = ROOT / "roles" / role
    made = yaml.safe_load((folder / "meta/clachan.yml").read_text()).get("generate", [])
    secrets = {name: f"made-for-{name}-0123456789" for name in made}
    found: dict[str, Any] = yaml.safe_load((folder / "defaults/main.yml").read_text())
    return found | secrets | given


def platform_collection(home: Path) -> Path:
    """As installed, with its roles."""
    collection = home / "ansible_collections/clachan/platform"
    for part in ("plugins", "playbooks", "meta", "roles"):
        shutil.copytree(ROOT / part, collection / part, ignore=shutil.ignore_patterns("__pycache__"))
    (collection / "files").symlink_to(ROOT / "files")
    listed = [
        {"name": str(path.relative_to(collection)), "ftype": "file", "chksum_sha256": sha256(path.read_bytes())}
        for path in sorted(collection.glob("roles/*/meta/*.yml"))
    ]
    files = json.dumps({"files": listed, "format": 1}).encode()
    (collection / "FILES.json").write_bytes(files)
    info = {"namespace": "clachan", "name": "platform", "version": "0.1.0"}
    manifest = {"name": "FILES.json", "chksum_sha256": sha256(files)}
    (collection / "MANIFEST.json").write_text(
        json.dumps({"collection_info": info, "file_manifest_file": manifest, "format": 1})
    )
    return home


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class HubNode(Node):
    """What the controller would send it, it declares itself: the hub's requests become instances."""

    def __init__(self, home: Path, platform: Path, things: Artifact, users: list[str]) -> None:
        super().__init__(home, platform, things, users, slots=len(users))
        manifest = platform / "ansible_collections/clachan/platform/MANIFEST.json"
        self.digest = sha256(manifest.read_bytes())
        self._hub: dict[str, Any] = {}
        self._places: dict[str, Any] = {}
        (home / "envs").mkdir()
        for name in ("lab", "science", "lake"):
            (home / "envs" / name).symlink_to(BIN.parent)

    def inventory(self) -> Inventory:
        found = super().inventory().model_dump(mode="json")
        own = {
            "collection": "clachan.platform",
            "version": "0.1.0",
            "artifact_sha256": None,
            "size": 0,
            "platform": True,
        }
        found["software"][self.digest] = own
        for path, record in found["records"].items():
            if path != NODE:
                record["clachan_instance"]["digest"] = self.digest
        return Inventory.model_validate_json(json.dumps(found))

    def wait(self, name: str, state: str = "started", seconds: float = 90) -> None:
        def come() -> bool:
            found = [fact for fact in self.facts("instance") if fact.instance == f"id-{name}"]
            assert [fact.state for fact in found[-2:]] != ["failed", "failed"], found[-1].message
            return bool(found) and found[-1].state == state

        self.until(come, seconds)

    def wait_new(self, name: str, seconds: float = 90) -> None:
        """Until the revision that is declared now was converged to."""
        revision = self.records[f"home.{name}"]["clachan_instance"]["revision"]

        def come() -> bool:
            found = [fact for fact in self.facts("instance") if fact.instance == f"id-{name}"]
            new = [fact for fact in found if fact.revision == revision]
            assert [fact.state for fact in new[-2:]] != ["failed", "failed"], new[-1].message
            return bool(new) and new[-1].state == "started"

        self.until(come, seconds)

    def slot(self, index: int) -> dict[str, Any]:
        found = super().slot(index)
        found["limits"] = {"memory_mib": 1024, "tasks": 512, "cpu_milli": 1000}
        return found

    def published(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory(name) / "etc/published.json").read_text())
        return found

    # -- the hub --------------------------------------------------------------------------------------------------

    def order_lake(self) -> None:
        given = completed("lake", {"lake_token": LAKE_SECRET})
        self.declare("lake", "clachan.platform.lake", parameters=given, sealed=["lake_token"])
        self.send()
        self.wait("lake")

    def order_hub(self, users: list[dict[str, Any]], **options: Any) -> None:
        """The hub, then the places that it asks for, then the hub which knows them."""
        self._hub = completed("lab", {"lab_users": users, "lab_disk_mib": 64, "lab_tls": True} | options)
        self.order()

    def order(self, **options: Any) -> None:
        self.want(**options)
        wanted = {user["name"] for user in self._hub["lab_users"]}
        for name in wanted:
            self.wait_new(name)
        self._places = {name: {"state": "started", "published": self.published(name)} for name in wanted}
        self._declare_hub()
        self.send()
        self.wait_new("hub")

    def want(self, **options: Any) -> None:
        """The hub, and the places that it asks for then."""
        self._hub |= options
        self._declare_hub()
        self.send()
        if self._places:
            self.wait_new("hub")
        folder = self.directory("hub") / "etc/requests.d"
        wanted = {user["name"] for user in self._hub["lab_users"]}
        self.until(lambda: folder.is_dir() and {path.stem for path in folder.iterdir()} == wanted, 60)
        for path in folder.iterdir():
            self._declare_place(path.stem, json.loads(path.read_text()))
        self.send()

    def said(self, name: str) -> str:
        """Of its last fact."""
        found = [fact for fact in self.facts("instance") if fact.instance == f"id-{name}"]
        return f"{found[-1].state}: {found[-1].message}"

    def _declare_hub(self) -> None:
        sealed = ["lab_token", "lab_lake_token"]
        more = {"parameters": self._hub, "sealed": sealed, "children": self._places}
        self.declare("hub", "clachan.platform.lab", **more)
        self.records["home.hub"]["clachan_instance"]["type"] = "hub"

    def _declare_place(self, name: str, request: dict[str, Any]) -> None:
        assert request["software"] == "clachan.platform.lab_user"
        assert request["placement"]["node"] == NODE
        parameters = completed("lab_user", request["parameters"])
        self.declare(name, request["software"], parameters=parameters, sealed=["lab_user_secret"])

    def remove(self, name: str) -> None:
        """It is wanted absent, and comes to be."""
        record = self.records[f"home.{name}"]
        record["clachan_instance"]["state"] = "absent"
        record["clachan_instance"]["revision"] += 1
        self.send()
        self.wait(name, "absent")

    def disk(self, name: str) -> Path:
        return self.home / "mounts" / self.directory(name).name

    def pid(self, name: str, service: str) -> int:
        return self.supervisor.pids().get((self.directory(name).name, service), 0)

    def token_age(self, name: str) -> float:
        return time.time() - (self.directory(name) / "var/lake-token").stat().st_mtime

    def kept(self, name: str, promise: str) -> "subprocess.CompletedProcess[str]":
        """As the agent checks it."""
        document = json.loads((self.directory(name) / f"etc/promises.d/{promise}.json").read_text())
        user = self.records[f"home.{name}"]["clachan_instance"]["slot"]["user"]
        return subprocess.run(
            document["command"],
            env={"PATH": "/usr/bin:/bin", "CLACHAN_SLOT": str(self.directory(name))},
            cwd=self.directory(name) / "var",
            user=user,
            group=user,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=document["timeout_seconds"],
            check=False,
        )


class Person:
    """Somebody with a browser."""

    def __init__(self, url: str, ca: Path | str, name: str, token: str) -> None:
        self.base, self.ca, self.name, self.token = url.removesuffix("/hub/"), ca, name, token
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.verify = str(ca) if ca else True

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.session.get(self.base + path, timeout=60, **options)

    def login(self) -> requests.Response:
        page = self.get("/hub/login")
        fields = {"username": self.name, "password": self.token, "_xsrf": self._xsrf("/hub/")}
        assert page.status_code == 200
        return self.session.post(self.base + "/hub/login", data=fields, timeout=60)

    def _xsrf(self, path: str) -> str:
        found = [each for each in self.session.cookies if each.name == "_xsrf" and path.startswith(each.path)]
        return str(max(found, key=lambda each: len(each.path)).value)

    def open_server(self, seconds: float = 60) -> None:
        """As the button of the page does, and until it answers."""
        self._press()
        limit = time.monotonic() + seconds
        while True:
            page = self.get(f"/user/{self.name}/lab")
            if page.status_code == 200 and urlsplit(page.url).path == f"/user/{self.name}/lab":
                return
            assert time.monotonic() < limit, page.url
            if urlsplit(page.url).path.startswith("/hub/user/"):  # not running, says the page, and has the button again
                self._press()
            time.sleep(0.5)

    def _press(self) -> None:
        self.get("/hub/spawn")
        answer = self.session.post(
            f"{self.base}/hub/spawn", data={"_xsrf": self._xsrf("/hub/")}, timeout=60, allow_redirects=False
        )
        assert answer.status_code in {302, 400}, answer.text

    def stop_server(self) -> None:
        answer = self.session.delete(
            f"{self.base}/hub/api/users/{self.name}/server", headers={"X-XSRFToken": self._xsrf("/hub/")}, timeout=60
        )
        assert answer.status_code in {202, 204}, answer.text

    def answers(self, path: str) -> bool:
        try:
            return self.get(path).status_code == 200
        except requests.ConnectionError:
            return False

    def ask(self, method: str, path: str, body: Any = None, user: str = "") -> requests.Response:
        where = f"/user/{user or self.name}"
        headers = {"X-XSRFToken": self._xsrf(where + "/")}
        return self.session.request(method, self.base + where + path, json=body, headers=headers, timeout=60)

    def kernel(self, name: str = "science") -> "Kernel":
        made = self.ask("POST", "/api/kernels", {"name": name})
        assert made.status_code == 201, made.text
        return Kernel(self, made.json()["id"])


class Kernel:
    def __init__(self, person: Person, identifier: str) -> None:
        self.person, self.id = person, identifier
        self._session = uuid.uuid4().hex
        place = urlsplit(person.base)
        cookies = "; ".join(f"{each.name}={each.value}" for each in person.session.cookies)
        self._line = websocket.create_connection(
            f"{place.scheme.replace('http', 'ws')}://{place.netloc}/user/{person.name}/api/kernels/{identifier}/channels"
            f"?session_id={self._session}",
            header={"Cookie": cookies},
            timeout=60,
            sslopt={"ca_certs": str(person.ca)} if person.ca else {},
            http_no_proxy=["*"],
        )

    def run(self, code: str) -> str:
        """What it prints, or its error; `died` when the kernel did."""
        asked = uuid.uuid4().hex
        header = {"msg_id": asked, "msg_type": "execute_request", "session": self._session, "version": "5.3"}
        content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
        message = {"header": header | {"username": "", "date": ""}, "parent_header": {}, "metadata": {}}
        self._line.send(json.dumps(message | {"content": content, "channel": "shell", "buffers": []}))
        said = ""
        while True:
            heard = json.loads(self._line.recv())
            kind, content = heard["msg_type"], heard["content"]
            if kind == "status" and content["execution_state"] in {"restarting", "dead"}:
                return "died"
            if heard["parent_header"].get("msg_id") != asked:
                continue
            said += {"stream": lambda c: c["text"], "error": lambda c: f"{c['ename']}: {c['evalue']}"}.get(
                kind, lambda _c: ""
            )(content)
            if kind == "status" and content["execution_state"] == "idle":
                return said.strip()

    def close(self) -> None:
        self._line.close()


def settles(condition: Callable[[], object], seconds: float = 30) -> None:
    wait_for(condition, seconds)

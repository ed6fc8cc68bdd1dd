"""A lab of one user, run by a real agent as root in a slot with its unix user: its home saved and brought back."""

import json
import os
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from .conftest import Artifact, unix_users
from .hub import HubNode, completed, platform_collection, settles

pytestmark = [
    pytest.mark.slow,
    pytest.mark.heavy,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="this machine cannot: no root, who makes unix users"),
]


class LabNode(HubNode):
    def order(self, **options: Any) -> None:
        self.want(**options)
        self.wait_new("lab")

    def want(self, **options: Any) -> None:
        parameters = completed("lab", options)
        self.declare("lab", "clachan.platform.lab", parameters=parameters, sealed=["lab_token"])
        self.send()

    def starts(self) -> int:
        """How often the server was started."""
        return (self.home / "supervisor/supervisord.log").read_text().count("spawned: 'slot-s000_lab'")

    def ask(self, method: str, path: str, body: Any = None) -> requests.Response:
        published = self.published("lab")
        url = published["url"].removesuffix("/lab") + path
        headers = {"Authorization": f"token {published['token']}"}
        with requests.Session() as session:
            session.trust_env = False
            return session.request(method, url, json=body, headers=headers, timeout=60)

    def opens(self) -> bool:
        try:
            return self.ask("GET", "/api/contents").status_code == 200
        except requests.ConnectionError:
            return False

    def text(self, content: str | None = None) -> str:
        """Of a file, as the page reads and saves it."""
        settles(self.opens)
        body = {"type": "file", "format": "text", "content": content}
        found = self.ask("GET" if content is None else "PUT", "/api/contents/work.txt", content and body)
        return str(found.json().get("content", "gone"))

    def backups(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.published("lab")["backups"])
        return found

    def running(self) -> list[psutil.Process]:
        uid = pwd.getpwnam(self.records["home.lab"]["clachan_instance"]["slot"]["user"]).pw_uid
        found = [each for each in psutil.process_iter() if each.uids().real == uid]
        return [each for each in found if each.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def node(folder: Path, things: Artifact) -> Iterator[LabNode]:
    home = folder / "main"
    home.mkdir(mode=0o755)
    with unix_users(f"clm{os.getpid()}", 1) as users:
        found = LabNode(home, platform_collection(folder / "labs"), things, users)
        found.start_supervisord()
        found.open_agent()
        yield found
        found.close()


def test_the_home_is_saved_and_brought_back(node: LabNode) -> None:
    node.order(lab_backups=["first"])
    node.text("before")
    node.order(lab_backups=["first", "second"])
    saved = node.backups()
    archive = node.home / "backups/home.lab/second.tar"
    assert sorted(saved) == ["first", "second"]
    assert (archive.stat().st_size, archive.stat().st_mode & 0o777) == (saved["second"]["size"], 0o600)
    assert (archive.stat().st_uid, archive.parent.stat().st_mode & 0o777) == (0, 0o700)
    node.text("after")
    server, starts = node.pid("lab", "lab"), node.starts()
    assert node.ask("POST", "/api/kernels", {"name": "science"}).status_code == 201
    settles(lambda: len(node.running()) > 1)
    before = {each.pid for each in node.running()}

    restore = {"lab_backups": ["first", "second"], "lab_restore": {"backup": "second"}}
    node.order(**restore)
    assert node.text() == "before"
    assert node.backups() == saved
    restarted = node.pid("lab", "lab")
    assert (restarted != server, node.starts()) == (True, starts + 1)
    settles(lambda: not before & {each.pid for each in node.running()})
    var = node.directory("lab") / "var"
    assert not [path.name for path in var.iterdir() if path.name.startswith("home.")]
    uid = pwd.getpwnam(node.config.user_of(0)).pw_uid
    assert {path.lstat().st_uid for path in var.rglob("*")} == {uid}
    assert (node.directory("lab") / "etc/restored").stat().st_uid == 0

    # the same again, and without it: nothing is done, and nothing is restarted
    node.text("later")
    node.order(**restore)
    assert node.facts("run")[-1].changed == 0
    node.order(lab_backups=["first"])
    assert (node.text(), node.pid("lab", "lab")) == ("later", restarted)
    assert node.backups() == saved

    # what is not there is said, and changes nothing
    node.want(lab_restore={"backup": "other"})
    node.until(lambda: node.state("lab") == "failed")
    said = "backup 'other': none that is finished, expected one of them (first, second)"
    assert [fact.message for fact in node.facts("instance") if fact.kind == "instance"][-1].endswith(said)
    assert (node.text(), node.pid("lab", "lab"), node.starts()) == ("later", restarted, starts + 1)
    node.order(lab_restore={"backup": "second", "word": "again"})
    assert node.text() == "before"

    # the lab goes and comes again: its backups are there, until the word is said
    node.remove("lab")
    assert (archive.exists(), list(node.directory("lab").iterdir())) == (True, [])
    node.order(lab_restore={"backup": "second", "word": "again"})
    assert node.text() == "before"
    node.order(lab_backups=["second"], lab_delete_backups=True)
    assert list(node.backups()) == ["second"]
    node.remove("lab")
    assert not archive.parent.exists()

"""A part of the role vm, run as a node's agent runs it, in the namespaces of a test's libvirtd."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .vm_node import USER, Node


@dataclass
class Backups:
    """The tasks that save volumes and bring them back, for one VM."""

    node: Node
    home: Path
    vm: dict[str, Any]
    volumes: list[dict[str, Any]]
    """As the filter vm_volumes gives them."""

    @property
    def archives(self) -> Path:
        return self.home / "backups" / str(self.vm["name"])

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Options of the role, without its prefix."""
        given = {f"vm_{name}": value for name, value in options.items()}
        role = {"name": "clachan.platform.vm", "tasks_from": "backups", "public": True}
        tell = {"msg": "saved={{ __vm_saved.results | clachan.platform.vm_saved }}"}
        tasks = [
            {"name": "Run them", "ansible.builtin.include_role": role, "vars": self._known() | given},
            {"name": "Tell", "ansible.builtin.debug": tell},
        ]
        folder = self.node.folder / "play"
        folder.mkdir(exist_ok=True)
        (folder / "play.json").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
        host = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
        (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": {"vm": host}}}))
        places = {"ANSIBLE_HOME": str(folder / "ansible"), "ANSIBLE_COLLECTIONS_PATH": str(self.node.collections)}
        files = ["-i", str(folder / "hosts.json"), str(folder / "play.json")]
        command = [str(Path(sys.executable).with_name("ansible-playbook")), *files, *arguments]
        return subprocess.run(
            [*self.node.libvirtd.inside, *command],
            env=os.environ | places | {"ANSIBLE_NOCOLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    def _known(self) -> dict[str, Any]:
        return {
            "clachan_instance": {"path": self.vm["name"], "id": self.vm["uuid"], "state": "started"},
            "__vm_home": str(self.home),
            "__vm_data": self.volumes,
            "__vm_user": USER,
        }

    def ok(self, *arguments: str, **options: Any) -> tuple[int, list[dict[str, Any]]]:
        """(how many tasks changed something, what was saved)."""
        done = self.run(*arguments, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        changed = re.search(r"changed=(\d+)", done.stdout)
        saved = re.search(r'"msg": "saved=(.*)"\n', done.stdout)
        assert changed
        assert saved
        text = json.loads(f'"{saved[1]}"')
        return int(changed[1]), json.loads(text) if text else []

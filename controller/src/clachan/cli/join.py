"""Making this machine a node: the playbook clachan.platform.node, with the join token in a file that only we read."""

import json
import os
import tempfile
from pathlib import Path

from clachan.cli import platform_playbook
from clachan.client.home import home


def join_here(url: str, name: str, token: str, slots: int | None, check: bool) -> int:
    """Run the playbook on this machine, its output on ours; answers its exit status."""
    directory = home()
    with tempfile.TemporaryDirectory(prefix="clachan-join-") as folder, platform_playbook.lock(directory, make=True):
        token_file = Path(folder) / "token"
        with os.fdopen(os.open(token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(token + "\n")
        variables: dict[str, object] = {
            "ansible_connection": "local",
            "ansible_python_interpreter": "{{ ansible_playbook_python }}",
            "node_controller_url": url,
            "node_name": name,
            "node_join_token_file": str(token_file),
        }
        if slots is not None:
            variables["node_slots"] = slots
        arguments = ["-e", json.dumps(variables), *(["--check", "--diff"] if check else [])]
        return platform_playbook.run(directory, "node", *arguments, inventory="localhost,")

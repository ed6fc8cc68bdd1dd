# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The supervisord of a home: where systemd does not run, it keeps the platform's own programs running."""

from __future__ import annotations

import http.client
import os
import socket
import time
import xmlrpc.client

from ansible_collections.clachan.platform.plugins.module_utils import layout

# Kept from the environment of whoever starts it; nothing that may be a secret
KEPT = ("HOME", "LANG", "LC_ALL", "TZ")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

CONFIGURATION = """\
[supervisord]
logfile = {home}/supervisor/supervisord.log
logfile_maxbytes = 2MB
logfile_backups = 2
pidfile = {home}/supervisor/supervisord.pid
childlogdir = {home}/log
directory = {home}
identifier = clachan
umask = 022
minfds = 1024
strip_ansi = true
{user}
[unix_http_server]
file = {home}/supervisor/supervisor.sock
chmod = 0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl = unix://{home}/supervisor/supervisor.sock

[include]
files = conf.d/*.conf
"""


def write_configuration(home):
    """Write what supervisord reads at its start; returns the file's path."""
    user = "user = root\n" if os.geteuid() == 0 else ""
    path = os.path.join(home, "supervisor", "supervisord.conf")
    layout.write_file(path, CONFIGURATION.format(home=home, user=user).encode(), 0o644)
    return path


def environment():
    kept = {name: value for name, value in os.environ.items() if name in KEPT}
    return dict(kept, PATH=PATH)


class _Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path):
        super().__init__()
        self._path = path

    def make_connection(self, host):
        return _Connection(self._path)


class Supervisor:
    """Remote procedures of the supervisord of one home."""

    def __init__(self, home):
        proxy = xmlrpc.client.ServerProxy(
            "http://localhost", transport=_Transport(os.path.join(home, "supervisor/supervisor.sock"))
        )
        self.call = proxy.supervisor

    def answers(self):
        try:
            return self.call.getState()["statename"] == "RUNNING"
        except (OSError, http.client.HTTPException):
            return False

    def wait(self, seconds):
        """Wait until it answers; says whether it does."""
        limit = time.monotonic() + seconds
        while not self.answers():
            if time.monotonic() > limit:
                return False
            time.sleep(0.05)
        return True

    def state(self, program):
        """The state's name, as RUNNING or BACKOFF; None for a program it does not know."""
        try:
            return self.call.getProcessInfo(program)["statename"]
        except xmlrpc.client.Fault:
            return None

    def renew(self, program):
        """Forget the program as it was, and start it as its file in conf.d says now."""
        self.call.reloadConfig()
        if self.state(program) is not None:
            try:
                self.call.stopProcessGroup(program)
            except xmlrpc.client.Fault:
                pass
            self.call.removeProcessGroup(program)
        self.call.addProcessGroup(program)

#!/usr/bin/python
# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: program
short_description: Keep a program of the platform running
version_added: 0.1.0
author:
  - The Clachan maintainers (@clachan)
description:
  - Keeps the controller, the agent or the supervisord of the slots' services running, as a systemd unit when systemd
    is pid 1 and it is run by root, else as a program of the home's supervisord, which is started when it does not run.
  - The program is restarted exactly when its command, its environment or the content of a file in O(restart_on) is
    not what it was last started with. This is remembered after the start, in the home. So a run that is killed
    between a change and the restart is made good by the next one, which a handler could not do.
options:
  name:
    description:
      - Which program.
    type: str
    required: true
    choices: [controller, agent, supervisord]
  home:
    description:
      - The Clachan home.
    type: path
    required: true
  environment_path:
    description:
      - The Python environment that it runs from.
    type: path
    required: true
  arguments:
    description:
      - Its arguments; the first is a command of the environment.
    type: list
    elements: str
    required: true
  restart_on:
    description:
      - Files that it reads at its start.
    type: list
    elements: path
    default: []
  prepare:
    description:
      - A command of the environment, with its arguments, that makes things ready before each start by this module.
      - It may write files of O(restart_on).
    type: list
    elements: str
    default: []
  start:
    description:
      - Whether to start it. Without, its systemd unit is written and enabled for the next boot, as an image needs it.
    type: bool
    default: true
attributes:
  check_mode:
    description: Can run in check mode and say what would change.
    support: full
  diff_mode:
    description: Shows the program's configuration before and after.
    support: full
"""

EXAMPLES = r"""
- name: Run the controller
  clachan.platform.program:
    name: controller
    home: /var/lib/clachan
    environment_path: /var/lib/clachan/envs/controller
    arguments: [clachan, controller, serve, --home, /var/lib/clachan]
    restart_on: [/var/lib/clachan/controller/config.json]
    prepare: [clachan, controller, init, --home, /var/lib/clachan]
"""

RETURN = r"""
action:
  description: What was done, or in check mode would be.
  returned: always
  type: str
  choices: [none, started, restarted, enabled]
"""

import hashlib
import os
import shlex
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.clachan.platform.plugins.module_utils import layout
from ansible_collections.clachan.platform.plugins.module_utils import supervisor

START_SECONDS = 30
PROGRAM = """\
[program:{name}]
command = {command}
environment = PATH="{path}"
directory = {home}
autostart = true
autorestart = true
startsecs = 1
startretries = 1000000
stopwaitsecs = 20
stopasgroup = true
killasgroup = true
redirect_stderr = true
stdout_logfile = {home}/log/{name}.log
stdout_logfile_maxbytes = 2MB
stdout_logfile_backups = 3
"""
UNIT = """\
[Unit]
Description=Clachan {name} ({home})
After=network-online.target {after}
Wants=network-online.target
{conditions}
[Service]
Type=exec
ExecStart={command}
Environment=PATH={path}
WorkingDirectory={home}
UMask=0022
Restart=always
RestartSec=1
TimeoutStopSec=20
{more}
[Install]
WantedBy=multi-user.target
"""
# in an image: what a machine that has just been made does first is to join, and then there is nothing to supervise yet
WHEN_NEEDED = """\
[Unit]
Description=Clachan {name} ({home}), once the controller has said what is to run here

[Path]
PathExists={home}/node/slice.json

[Install]
WantedBy=multi-user.target
"""
CONFINED = """\
CapabilityBoundingSet=
LockPersonality=yes
NoNewPrivileges=yes
PrivateDevices=yes
PrivateTmp=yes
ProtectControlGroups=yes
ProtectKernelTunables=yes
ProtectSystem=strict
ReadWritePaths={home}
RestrictSUIDSGID=yes
"""
# a machine made of an image has neither until its seed says how to join
JOINING = "ConditionPathExists=|{home}/node/node.json\nConditionPathExists=|{home}/node/join.json\n"
# until the machine has booted: an emulated one would start its logins and its agent all at once
FIRST = "StartupCPUWeight=10000\n"
MORE = {"controller": CONFINED, "agent": FIRST, "supervisord": "KillMode=mixed\nLimitNOFILE=65536\nTasksMax=infinity\n"}


class Program:
    """One program; the backends say how it is configured, looked at and started."""

    def __init__(self, module):
        self.module = module
        self.name = module.params["name"]
        self.home = module.params["home"]
        environment = module.params["environment_path"]
        # a unit of the slots' supervisord keeps the link, as all services would stop with it
        present = environment if self.name == "supervisord" else os.path.realpath(environment)
        self.command, self.preparation = (
            [os.path.join(present, "bin", words[0]), *words[1:]] if words else []
            for words in (module.params["arguments"], module.params["prepare"])
        )
        self.search = "%s/bin:%s" % (environment, supervisor.PATH)
        self.applied = os.path.join(self.home, "supervisor", "%s.applied" % self.name)

    def keep(self):
        """Write the configuration and start what must be; returns the action and the diff."""
        path, text = self.configuration()
        before = read(path)
        running = self.running()
        if before == text and running and read(self.applied) == self._fingerprint(text):
            return "none", {"before": before, "after": text}
        if not self.module.check_mode:
            self._prepare()
            wanted = self._fingerprint(text)
            if before != text:
                layout.write_file(path, text.encode(), 0o644)
            self.restart()
            layout.write_file(self.applied, wanted.encode(), 0o600)
        return ("restarted" if running else "started"), {"before": before, "after": text}

    def _fingerprint(self, text):
        digest = hashlib.sha256(text.encode())
        for path in self.module.params["restart_on"]:
            digest.update(hashlib.sha256(read(path).encode()).digest())
        return digest.hexdigest()

    def _prepare(self):
        if not self.preparation:
            return
        status, out, err = self.module.run_command(self.preparation, cwd="/")
        if status:
            self.fail("%s: exit status %d" % (" ".join(self.preparation[:3]), status), out + err)

    def fail(self, what, log):
        raise layout.HomeError("program %s: %s, expected it to run; its log ends with:\n%s" % (self.name, what, log))


class Supervised(Program):
    """A program of the home's supervisord."""

    def __init__(self, module):
        super().__init__(module)
        self.supervisor = supervisor.Supervisor(self.home)

    def configuration(self):
        text = PROGRAM.format(
            name=self.name, home=self.home, path=self.search, command=" ".join(map(shlex.quote, self.command))
        )
        return os.path.join(self.home, "supervisor", "conf.d", "%s.conf" % self.name), text

    def running(self):
        return self.supervisor.answers() and self.supervisor.state(self.name) == "RUNNING"

    def restart(self):
        if self.supervisor.answers():
            self.supervisor.renew(self.name)
        else:
            self._start_supervisor()
        limit = time.monotonic() + START_SECONDS
        while self.supervisor.state(self.name) != "RUNNING":
            if time.monotonic() > limit:
                log = read(os.path.join(self.home, "log", "%s.log" % self.name))
                self.fail("is %s after %d s" % (self.supervisor.state(self.name), START_SECONDS), log[-2000:])
            time.sleep(0.1)

    def _start_supervisor(self):
        """Start it with every program that has a file in conf.d."""
        path = supervisor.write_configuration(self.home)
        command = [os.path.join(self.module.params["environment_path"], "bin", "supervisord"), "-c", path]
        process = subprocess.run(
            command, env=supervisor.environment(), cwd="/", capture_output=True, text=True, check=False
        )
        if process.returncode or not self.supervisor.wait(START_SECONDS):
            self.fail("supervisord does not start", process.stdout + process.stderr)


class Unit(Program):
    """A systemd unit."""

    def __init__(self, module):
        super().__init__(module)
        self.unit = unit_name(self.home, self.name)

    def configuration(self):
        text = UNIT.format(
            name=self.name,
            home=self.home,
            path=self.search,
            command=" ".join(self.command),
            after=unit_name(self.home, "supervisord") if self.name == "agent" else "",
            conditions=JOINING.format(home=self.home) if self.name == "agent" else "",
            more=MORE[self.name].format(home=self.home),
        )
        return os.path.join("/etc/systemd/system", self.unit), text

    def enable(self):
        """Write the unit and let it start with the machine; returns the action and the diff."""
        units, starter = dict([self.configuration()]), self.unit
        if self.name == "supervisord":
            starter = starter.replace(".service", ".path")
            units["/etc/systemd/system/" + starter] = WHEN_NEEDED.format(name=self.name, home=self.home)
        before = {path: read(path) for path in units}
        difference = {"before": "".join(before.values()), "after": "".join(units.values())}
        if before == units and self._systemctl("is-enabled", "--quiet", starter)[0] == 0:
            return "none", difference
        if not self.module.check_mode:
            for path, text in units.items():
                layout.write_file(path, text.encode(), 0o644)
            if self.name == "supervisord":
                supervisor.write_configuration(self.home)
            status, _out, err = self._systemctl("enable", "--quiet", starter)
            if status:
                raise layout.HomeError("systemctl enable %s: %s, expected it to work" % (starter, err.strip()))
        return "enabled", difference

    def running(self):
        active = self._systemctl("is-active", "--quiet", self.unit)[0] == 0
        return active and self._systemctl("is-enabled", "--quiet", self.unit)[0] == 0

    def restart(self):
        if self.name == "supervisord":
            supervisor.write_configuration(self.home)
        for arguments in (["daemon-reload"], ["enable", "--quiet", self.unit], ["restart", self.unit]):
            status, _out, err = self._systemctl(*arguments)
            if status:
                log = self.module.run_command(["journalctl", "-n", "20", "--no-pager", "-u", self.unit])[1]
                self.fail("systemctl %s: %s" % (arguments[0], err.strip()), log)

    def _systemctl(self, *arguments):
        return self.module.run_command(["systemctl", *arguments])


def unit_name(home, name):
    """A second home on one machine has units of its own."""
    own = layout.own_prefix(home)
    return "clachan-%s%s.service" % (own and own + "-", name)


def read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True, "choices": ["controller", "agent", "supervisord"]},
            "home": {"type": "path", "required": True},
            "environment_path": {"type": "path", "required": True},
            "arguments": {"type": "list", "elements": "str", "required": True},
            "restart_on": {"type": "list", "elements": "path", "default": []},
            "prepare": {"type": "list", "elements": "str", "default": []},
            "start": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    systemd = os.geteuid() == 0 and os.path.isdir("/run/systemd/system")
    try:
        if module.params["start"]:
            action, diff = (Unit if systemd else Supervised)(module).keep()
        else:
            action, diff = Unit(module).enable()
    except layout.HomeError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=action != "none", action=action, **({"diff": diff} if module._diff else {}))


if __name__ == "__main__":
    main()

# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: enter
short_description: Run in a root file system of this machine, behind a command that enters it
author:
  - The Clachan maintainers (@clachan)
description:
  - Runs each command of a task behind another command, such as C(chroot) or C(nsenter) with their arguments.
  - The builder of images uses it for a root file system in namespaces of its own.
options:
  command:
    description: The command and its arguments, that the task's own are appended to.
    type: list
    elements: str
    required: true
    vars:
      - name: ansible_enter_command
  remote_user:
    description: Who runs the commands there.
    type: str
    default: root
    vars:
      - name: ansible_user
"""

import os
import shutil
import subprocess

from ansible.errors import AnsibleConnectionFailure, AnsibleFileNotFound
from ansible.module_utils.common.text.converters import to_bytes
from ansible.plugins.connection import ConnectionBase


class Connection(ConnectionBase):
    transport = "clachan.platform.enter"
    has_pipelining = True
    has_tty = False

    def _connect(self):
        self._connected = True
        return self

    def _start(self, arguments):
        command = [str(part) for part in self.get_option("command")] + arguments
        try:
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/"
            )
        except OSError as error:
            raise AnsibleConnectionFailure("command %s: %s, expected it to start" % (command[0], error)) from error

    def exec_command(self, cmd, in_data=None, sudoable=True):
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        process = self._start(["/bin/sh", "-c", cmd])
        out, err = process.communicate(to_bytes(in_data) if in_data else b"")
        return process.returncode, out, err

    def put_file(self, in_path, out_path):
        super().put_file(in_path, out_path)
        if not os.path.isfile(in_path):
            raise AnsibleFileNotFound("file %s: not found, expected it" % in_path)
        process = self._start(["/usr/bin/dd", "of=" + out_path, "bs=1M", "status=none"])
        with open(in_path, "rb") as source:
            shutil.copyfileobj(source, process.stdin, 1 << 20)
        _out, err = process.communicate()
        self._check(process, out_path, err)

    def fetch_file(self, in_path, out_path):
        super().fetch_file(in_path, out_path)
        process = self._start(["/usr/bin/dd", "if=" + in_path, "bs=1M", "status=none"])
        process.stdin.close()
        with open(out_path, "wb") as target:
            shutil.copyfileobj(process.stdout, target, 1 << 20)
        err = process.stderr.read()
        process.wait()
        self._check(process, in_path, err)

    def _check(self, process, path, err):
        if process.returncode:
            said = err.decode(errors="replace").strip()
            raise AnsibleConnectionFailure("file %s: not copied, expected it to be: %s" % (path, said))

    def close(self):
        self._connected = False

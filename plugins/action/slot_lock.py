# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action of clachan.platform.slot_lock: takes the lock here when the slot is here, else by the module there."""

from __future__ import annotations

import os
import platform

from ansible.plugins.action import ActionBase

from ansible_collections.clachan.platform.plugins.module_utils.slot_lock import LockError, lock, unlock


class ActionModule(ActionBase):
    _supports_check_mode = True
    _VALID_ARGS = frozenset(("state",))

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        directory = str(task_vars["clachan_instance"]["slot"]["directory"])
        state = self._task.args.get("state", "present")
        # a task runs in a child of the process that lives as long as the run
        run = "the run of process %d on %s" % (os.getppid(), platform.node())
        if self._connection.transport != "local":
            return self._send({"directory": directory, "run": run, "state": state}, task_vars)
        try:
            if state == "present":
                lock(directory, run, process=os.getppid())
            else:
                unlock(directory, run)
        except LockError as problem:
            result.update(failed=True, msg=str(problem))
        return dict(result, changed=False)

    def _send(self, arguments, task_vars):
        if self._connection.become:
            self._connection.become.set_option("become_user", "root")
        return self._execute_module("clachan.platform.slot_lock", module_args=arguments, task_vars=task_vars)

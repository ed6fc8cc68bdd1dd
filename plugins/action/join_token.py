# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from ansible_collections.clachan.platform.plugins.modules import join_token
from ansible_collections.clachan.platform.plugins.plugin_utils.controller_action import ControllerAction


class ActionModule(ControllerAction):
    MODULE = join_token
    NAME = "join_token"

    def is_secret(self):
        return not self._task.args.get("dest")

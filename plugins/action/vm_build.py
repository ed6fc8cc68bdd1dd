# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action of clachan.platform.vm_build: a look into a directory."""

from __future__ import annotations

from ansible_collections.clachan.platform.plugins.modules import vm_build
from ansible_collections.clachan.platform.plugins.plugin_utils.node_action import NodeAction


class ActionModule(NodeAction):
    MODULE = vm_build

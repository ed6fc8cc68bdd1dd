# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The action of clachan.platform.isolation: the node's links are looked at where Ansible runs."""

from __future__ import annotations

from ansible_collections.clachan.platform.plugins.modules import isolation
from ansible_collections.clachan.platform.plugins.plugin_utils.node_action import NodeAction


class ActionModule(NodeAction):
    MODULE = isolation

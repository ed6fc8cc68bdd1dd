# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the platform's state is on this machine."""

from __future__ import annotations

import os


def home(given=None):
    """The platform's state directory: the given one, CLACHAN_HOME, or the default of this user."""
    given = given or os.environ.get("CLACHAN_HOME")
    if given:
        return os.path.expanduser(given)
    if os.geteuid() == 0:
        return "/var/lib/clachan"
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return os.path.join(data, "clachan")

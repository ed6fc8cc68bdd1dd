# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The log of a VM's serial console, kept below a size while QEMU writes to it.

QEMU appends (O_APPEND), so after the file was emptied it goes on at the beginning. What it writes between the copy and
that moment is lost.
"""

from __future__ import annotations

import os

from ansible_collections.clachan.platform.plugins.module_utils.layout import write_file

MIB = 1024 * 1024


def bound(path, mib):
    """When the log is longer than that, keep its last part in `<path>.1` and empty it. Says whether it did."""
    try:
        log = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    with os.fdopen(log, "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= mib * MIB:
            return False
        file.seek(max(0, size - mib * MIB))
        write_file(path + ".1", file.read(mib * MIB), 0o600)
        os.ftruncate(file.fileno(), 0)
    return True

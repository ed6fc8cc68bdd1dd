# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives of volumes: a qcow2 file that stands alone, root's, and its sha256 beside it, as sha256sum reads it.

The sum is written last: an archive without one was not finished, and one whose content does not have it is refused.
"""

from __future__ import annotations

import os

from ansible_collections.clachan.platform.plugins.module_utils.domain import is_roots_alone
from ansible_collections.clachan.platform.plugins.module_utils.hypervisor import HypervisorError
from ansible_collections.clachan.platform.plugins.module_utils.layout import write_file
from ansible_collections.clachan.platform.plugins.module_utils.file_content import digest_of


def noted_sum(path):
    """The sha256 that was noted when the archive was finished; None when there is no finished one."""
    if not is_roots_alone(path):
        raise HypervisorError("archive %s: expected directories that only root can write" % path)
    try:
        with open(path + ".sha256", encoding="ascii", errors="replace") as file:
            words = file.read(200).split()
    except FileNotFoundError:
        return None
    return words[0] if words and os.path.isfile(path) and not os.path.islink(path) else None


def checked_sum(path):
    """The archive's sha256, compared with its content."""
    noted = noted_sum(path)
    if noted is None:
        raise HypervisorError("archive %s: not there or not finished, expected one" % path)
    found = digest_of(path)
    if found != noted:
        raise HypervisorError("archive %s: sha256 %s, expected %s" % (path, found, noted))
    return noted


def write(path, save):
    """Make an archive: `save(descriptor)` writes it. Returns its sha256."""
    temporary = "%s/.%s.new" % os.path.split(path)
    if os.path.lexists(temporary):
        os.unlink(temporary)
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        save(handle)
        os.fchmod(handle, 0o600)
        os.fsync(handle)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(handle)
    found = digest_of(temporary)
    os.replace(temporary, path)
    write_file(path + ".sha256", ("%s  %s\n" % (found, os.path.basename(path))).encode(), 0o600)
    return found

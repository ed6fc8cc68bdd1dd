# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  backups:
    description:
      - Names of backups of the home that shall be there. Each is made once, an archive C(NAME.tar) with its sha256
        beside it, and those that are not named stay.
    type: list
    elements: str
    default: []
  delete_backups:
    description: Removes the backups that O(backups) does not name.
    type: bool
    default: false
  restore:
    description: The name of the backup that the home is brought back to, once. Another O(restore_word) does it again.
    type: str
    default: ""
  restore_word:
    description: Another word brings the last backup back again.
    type: str
    default: ""
attributes:
  check_mode:
    description: Says what would change, changing nothing.
    support: full
  diff_mode:
    description: Shows what changes.
    support: none
  platform:
    description: Target systems.
    support: full
    platforms: posix
"""

# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names and paths as the contract has them; the plugins check them again because they trust no one's text."""

from __future__ import annotations

import re

NAME = r"[a-z][a-z0-9_]{0,30}"
PATH = r"%s(\.%s){1,7}" % (NAME, NAME)
FQCN = r"[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*"
SECRET = "<secret>"  # noqa: S105 - what stands where a secret is not shown


def is_name(value):
    return isinstance(value, str) and re.fullmatch(NAME, value) is not None


def is_path(value):
    return isinstance(value, str) and len(value) <= 255 and re.fullmatch(PATH, value) is not None


def is_fqcn(value):
    return isinstance(value, str) and len(value) <= 128 and re.fullmatch(FQCN, value) is not None

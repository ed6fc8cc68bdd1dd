# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeping secrets out of differences."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

from ansible_collections.clachan.platform.plugins.module_utils.names import SECRET

HIDDEN = "<hidden: this file holds a secret>"


def texts_of(value):
    """Every text in a value: the parts of it that would give a secret away."""
    if isinstance(value, dict):
        return [text for part in value.values() for text in texts_of(part)]
    if isinstance(value, list):
        return [text for part in value for text in texts_of(part)]
    return [] if value is None or isinstance(value, bool) or value == "" else [str(value)]


class Redaction:
    """Replaces secrets, and the usual encodings of them, in texts."""

    def __init__(self, secrets):
        forms = {form for secret in secrets if secret for form in _forms(secret)}
        # the longest first, so that no part of one is left over when a shorter one is inside it
        self._forms = sorted(forms, key=len, reverse=True)

    def text(self, text):
        for form in self._forms:
            text = text.replace(form, SECRET)
        return text

    def pair(self, before, after):
        """A text before and after. Where a secret stands after, the lines that it replaced are hidden: they may hold
        the former secret, which is not known here any more."""
        clean = self.text(after)
        if clean == after:
            return self.text(before), after
        kept = set(after.splitlines())
        lines = [line if line in kept else HIDDEN for line in before.splitlines()]
        return self.text("".join(line + "\n" for line in lines)), clean


def _forms(secret):
    return (
        secret,
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        quote(secret, safe="", errors="surrogatepass"),
        quote(secret, errors="surrogatepass"),
        base64.b64encode(secret.encode("utf-8", "surrogatepass")).decode(),
    )

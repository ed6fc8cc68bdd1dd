"""A policy's pattern: a regular expression that must match a whole tag, in time linear in its length (RE2).

Patterns come from tenants and tags from anybody, so what could take exponential time in Python's `re` must not be
possible here: RE2 has no look-around and no references back.
"""

from collections.abc import Mapping

import re2

from clachan_lake.names import fits

PATTERN_BYTES = 1024
MEMORY_BYTES = 256 << 10
"""Of one compiled pattern, with all that it remembers of tags; one that needs more is refused."""


class Pattern:
    def __init__(self, text: str) -> None:
        """Raises ValueError."""
        if not text or not fits(text, PATTERN_BYTES):
            raise ValueError(f"{text!r:.80}, expected 1-{PATTERN_BYTES} bytes of a regular expression")
        try:
            self._compiled = re2.compile(text, _options())
        except (re2.error, UnicodeError) as error:
            raise ValueError(f"{text!r:.80}, expected a regular expression of RE2: {_reason(error)}") from None
        self.text = text
        self.groups = frozenset(self._compiled.groupindex)

    def match(self, tag: str) -> Mapping[str, str] | None:
        """What the named groups hold ("" for one that took no part), or None when the tag does not match."""
        try:
            found = self._compiled.fullmatch(tag)
        except UnicodeEncodeError:
            return None
        if found is None:
            return None
        return {name: text or "" for name, text in found.groupdict().items()} if self.groups else {}


def _options() -> re2.Options:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = MEMORY_BYTES
    return options


def _reason(error: Exception) -> str:
    reason = error.args[0] if error.args else error
    return reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)

"""Secrets kept out of what the agent writes and says: every sealed value, in each form that it may be printed in."""

import base64
import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from pydantic import JsonValue

from clachan.contract.inventory import SECRET

SHORTEST = 4
"""Shorter values would blank out half of every text; a secret is longer."""


class Redactor:
    """Replaces secrets in texts and structures by <secret>."""

    def __init__(self, values: Iterable[JsonValue]) -> None:
        texts = {text for value in values for text in _texts(value) if len(text) >= SHORTEST}
        forms = {form for text in texts for form in _forms(text)}
        # a longer one first: one secret may be part of another
        self._forms = sorted(forms, key=len, reverse=True)

    def text(self, text: str) -> str:
        for form in self._forms:
            if form in text:
                text = text.replace(form, SECRET)
        return text

    def anything(self, value: Any) -> Any:
        """The same structure, with every string and key in it redacted."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.anything(key): self.anything(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.anything(one) for one in value]
        return value


def sealed_values(variables: dict[str, JsonValue], sealed: Iterable[str]) -> list[JsonValue]:
    return [variables[name] for name in sealed if name in variables]


def _texts(value: JsonValue) -> Iterable[str]:
    if isinstance(value, str):
        yield value
        yield from (line for line in value.splitlines() if line != value)
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _forms(text: str) -> set[str]:
    quoted = {json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1]}
    # a text within JSON within JSON: Ansible prints the arguments of a task so
    twice = {json.dumps(one)[1:-1] for one in quoted}
    encoded = {quote(text), quote(text, safe=""), base64.b64encode(text.encode()).decode()}
    return {text} | quoted | twice | encoded

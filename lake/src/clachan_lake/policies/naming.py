"""Texts in which `{tag}` and `{group}` stand for parts of a tag; `{{` and `}}` are braces.

What is put in is never looked at again, so a tag with braces in it is only text.
"""

import re
from collections.abc import Mapping, Set
from typing import Any

TAG = "tag"
_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class Template:
    def __init__(self, text: str, groups: Set[str]) -> None:
        """Raises ValueError for a name that is none of the pattern's groups."""
        self._literal: list[str] = [""]
        self._names: list[str] = []
        end = 0
        for found in _PART.finditer(text):
            self._literal[-1] += text[end : found.start()]
            end = found.end()
            if found.group() in ("{{", "}}"):
                self._literal[-1] += found.group()[0]
                continue
            name = found.group(1)
            if name is None or name not in {TAG, *groups}:
                raise ValueError(f"{text!r:.80}, expected {{{'}, {'.join(sorted({TAG, *groups}))}}} as its only parts")
            self._names.append(name)
            self._literal.append("")
        self._literal[-1] += text[end:]

    @property
    def fixed(self) -> bool:
        """Whether it is the same for every tag."""
        return not self._names

    def fill(self, tag: str, groups: Mapping[str, str]) -> str:
        text = self._literal[0]
        for name, literal in zip(self._names, self._literal[1:], strict=True):
            text += groups.get(name, tag) + literal
        return text


def check_values(value: Any, groups: Set[str]) -> None:
    """Raises ValueError for a text in a JSON value that is no template."""
    if isinstance(value, str):
        Template(value, groups)
    elif isinstance(value, dict):
        for inner in value.values():
            check_values(inner, groups)
    elif isinstance(value, list):
        for inner in value:
            check_values(inner, groups)


def fill_values(value: Any, tag: str, groups: Mapping[str, str]) -> Any:
    """The JSON value with its texts filled; keys stay as they are."""
    if isinstance(value, str):
        return Template(value, groups.keys()).fill(tag, groups) if "{" in value or "}" in value else value
    if isinstance(value, dict):
        return {key: fill_values(inner, tag, groups) for key, inner in value.items()}
    if isinstance(value, list):
        return [fill_values(inner, tag, groups) for inner in value]
    return value

"""What a verb prints: a table for people, tab-aligned lines in a pipe, or the API's own objects as JSON.

Titles, messages and logs are other people's text: nothing in them reaches a terminal as a control sequence.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clachan.contract import Document

_STYLES = {
    "started": "green", "present": "green", "active": "green", "online": "green", "ok": "green",
    "failed": "red", "failing": "red", "revoked": "red", "offline": "red", "wrong": "red",
    "waiting": "yellow", "allocated": "yellow", "converging": "yellow", "drained": "yellow", "joining": "yellow",
}  # fmt: skip


def clean(text: object, *, lines: bool = False) -> str:
    """The text with what is not printable shown as escapes; `lines` keeps newlines and tabs."""
    keep = "\n\t" if lines else ""
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in str(text))


def print_json(document: "Document | None") -> None:
    print(json.dumps(_plain(document), indent=2))


def print_json_list(documents: "Iterable[Document]") -> None:
    """One JSON array, written as the documents come."""
    opened = False
    for document in documents:
        print(",\n" if opened else "[\n", json.dumps(_plain(document), indent=2), sep="", end="")
        opened = True
    print("\n]" if opened else "[]")


def print_json_line(document: "Document") -> None:
    """One line of JSON, at once: for streams that do not end."""
    print(json.dumps(_plain(document)), flush=True)


def _plain(document: "Document | None") -> Any:
    return None if document is None else document.model_dump(mode="json", by_alias=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows under their columns' names; None is shown as `-`."""
    cells = [["-" if value is None else clean(value) for value in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(columns, cells)
        return
    widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
    for row in [list(columns), *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _rich_table(columns: Sequence[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console().print(shown)


def details(pairs: Iterable[tuple[str, object]]) -> None:
    """One thing, a line for each of its properties; None is shown as `-`."""
    shown = [(name, "-" if value is None else clean(value)) for name, value in pairs]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name.ljust(width)}  {value}")


def labels_text(labels: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(labels.items())) or "-"

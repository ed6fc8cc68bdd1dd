"""A notebook (nbformat 4) with its parameters set, run cell by cell in a lab, and written with its outputs."""

import json
import keyword
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from clachan.cli.errors import CommandError
from clachan.cli.lab_server import Lab

PARAMETERS, SET = "parameters", "injected-parameters"
Notebook = dict[str, Any]


def read(file: Path) -> Notebook:
    """Raises CommandError for a file that is no notebook."""
    try:
        book = json.loads(file.read_bytes())
    except ValueError as error:
        raise CommandError(f"notebook {file}: {error}, expected JSON") from error
    form = book.get("nbformat") if isinstance(book, dict) else None
    if form != 4 or not isinstance(book.get("cells"), list) or not all(map(_is_cell, book["cells"])):
        raise CommandError(f"notebook {file}: nbformat {form}, expected 4 with cells")
    found: Notebook = book
    return found


def _is_cell(cell: Any) -> bool:
    return isinstance(cell, dict) and isinstance(cell.get("source"), str | list) and "cell_type" in cell


def _source(cell: Notebook) -> str:
    return cell["source"] if isinstance(cell["source"], str) else "".join(map(str, cell["source"]))


def set_parameters(book: Notebook, given: list[str]) -> None:
    """Add a cell behind the one with the tag `parameters`. A value is JSON where it is that, else text; nothing of it
    is code. Raises typer.BadParameter for a name that the cell does not have."""
    if not given:
        return
    places = [number for number, cell in enumerate(book["cells"]) if PARAMETERS in _tags(cell)]
    if not places:
        raise CommandError(f"notebook: no cell with the tag {PARAMETERS}, expected one")
    known = re.findall(r"^([^\W\d]\w*)\s*(?::[^=\n]+)?=(?!=)", _source(book["cells"][places[0]]), re.MULTILINE)
    lines = []
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in known or keyword.iskeyword(name):
            raise typer.BadParameter(f"parameter {text!r}, expected NAME=VALUE, NAME one of {', '.join(known)}")
        lines.append(f"{name} = {_value(value)!r}\n")
    cell = {"cell_type": "code", "metadata": {"tags": [SET]}, "execution_count": None, "outputs": [], "source": lines}
    if (book.get("nbformat_minor") or 0) >= 5:
        cell["id"] = SET
    kept = [each for each in book["cells"] if SET not in _tags(each)]
    kept.insert(next(at for at, each in enumerate(kept) if PARAMETERS in _tags(each)) + 1, cell)
    book["cells"] = kept


def _tags(cell: Notebook) -> list[str]:
    metadata = cell.get("metadata")
    tags = metadata.get("tags") if isinstance(metadata, dict) else None
    return tags if isinstance(tags, list) else []


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError:
        return text


def _refuse(constant: str) -> Any:
    """NaN and Infinity are no JSON, and no names of Python."""
    raise ValueError(constant)


def run(book: Notebook, lab: Lab, kernel: str, written: Path, say: Callable[[str, str], None]) -> None:
    """Raises CommandError at the first cell that fails; what ran until then is in the result."""
    from clachan.cli.lab_kernel import Kernel

    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code" and _source(cell).strip()]
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    say("starting the kernel", kernel)
    with Kernel(lab, kernel) as running:
        running.wait()
        for number, cell in enumerate(cells, 1):
            say(f"cell {number} of {len(cells)}", _source(cell).strip().partition("\n")[0][:60])
            try:
                for output in running.execute(_source(cell)):
                    _add(cell["outputs"], output)
            finally:
                cell["execution_count"] = number
                _write(written, book)
            _check(cell, number, written)
    say(f"{len(cells)} cells done", "")


def _add(outputs: list[Any], output: dict[str, Any]) -> None:
    """Text that comes in pieces is one output, as Jupyter keeps it."""
    last = outputs[-1] if outputs else {}
    if output["output_type"] == "stream" == last.get("output_type") and output["name"] == last["name"]:
        last["text"] += output["text"]
    else:
        outputs.append(output)


def _check(cell: Notebook, number: int, written: Path) -> None:
    for output in cell["outputs"]:
        if output["output_type"] == "error":
            raise CommandError(f"cell {number}: {output['ename']}: {output['evalue']}, see {written}")


def _write(file: Path, book: Notebook) -> None:
    """In one step, so that a reader never finds half of it."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    fresh.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n")
    fresh.replace(file)


def last_result(book: Notebook) -> str:
    """The text of the last value that a cell ended with; empty for none."""
    for cell in reversed(book["cells"]):
        for output in reversed(cell.get("outputs") or []):
            if output["output_type"] == "execute_result" and "text/plain" in output["data"]:
                found = output["data"]["text/plain"]
                return found if isinstance(found, str) else "".join(found)
    return ""

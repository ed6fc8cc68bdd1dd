"""The tables of what arrays promise, and of their limits, in docs/arrays.md, name tests that are there."""

import ast
import re
from functools import cache

import pytest
from house import ROOT

DOCUMENT = (ROOT / "docs" / "arrays.md").read_text()
NAMED = re.findall(r"\| `([\w/]+\.py)::(\w+)` \|", DOCUMENT)


@cache
def functions_of(path: str) -> set[str]:
    """Also those of classes."""
    return {one.name for one in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(one, ast.FunctionDef)}


@pytest.mark.parametrize(("path", "test"), NAMED, ids=[test for _, test in NAMED])
def test_it_is_there(path: str, test: str) -> None:
    assert test.startswith("test_")
    assert test in functions_of(path)


def test_every_row_names_one() -> None:
    tables = [table for table in re.findall(r"(?:^\|.*\n)+", DOCUMENT, re.MULTILINE) if "| test |\n" in table]
    assert len(tables) == 3
    assert sum(table.count("\n") - 2 for table in tables) == len(NAMED) >= 60


def test_each_promise_of_the_reference_is_one_row() -> None:
    tests = [test for path, test in NAMED if path.endswith("test_array_semantics.py")]
    assert sorted(tests) == sorted(set(tests))
    known = functions_of("lake/tests/test_array_semantics.py")
    assert {test for test in known if test.startswith("test_")} == set(tests)

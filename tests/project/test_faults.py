"""The table of faults in docs/testing.md names tests that are there."""

import ast
import re

import pytest
from house import ROOT

NAMED = re.findall(r"\| `([\w/]+\.py)::(\w+)` \|", (ROOT / "docs" / "testing.md").read_text())


@pytest.mark.parametrize(("path", "test"), NAMED, ids=[test for _, test in NAMED])
def test_it_is_there(path: str, test: str) -> None:
    body = ast.parse((ROOT / path).read_text()).body
    assert test in {one.name for one in body if isinstance(one, ast.FunctionDef)}


def test_every_row_names_one() -> None:
    table = (ROOT / "docs" / "testing.md").read_text().partition("| fault or input |")[2].partition("\n\n")[0]
    assert len(table.splitlines()) - 2 == len(NAMED) >= 40

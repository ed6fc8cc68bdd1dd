"""Nothing in the repository names the place where it was written, and what must say its licence says it."""

import re

import pytest
from house import ROOT, name_of, python_files, text_files

PLACES = [
    r"(?<![\w.$}>-])/wor" + r"k/",
    r"/roo" + r"t/\.(?!ssh)",
    r"/home/(?!you\b)[a-z]",
    r"/User" + r"s/[a-z]",
    r"/tmp/sp" + r"ec\b",
    r"\.py" + r"env\b",
    r"\.\./sha" + r"red\b",
    r"/opt/whe" + r"els",
    r"artifact-reg" + r"istry",
    r"\b(FIX" + r"ME|XX" + r"X|TO" + r"DO)\b",
]


@pytest.mark.parametrize("place", PLACES)
def test_no_words_of_a_developers_place(place: str) -> None:
    found = [
        f"{name_of(path)}:{number}: {line.strip()[:100]}"
        for path, text in text_files()
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(place, line)
    ]
    assert not found


def test_text_is_utf8_with_unix_lines_and_an_end() -> None:
    wrong = [name_of(path) for path, text in text_files() if "\r\n" in text or (text and not text.endswith("\n"))]
    assert not wrong


def test_plugins_carry_their_licence() -> None:
    paths = [path for path in python_files("plugins") if path.read_text().strip() and path.name != "__init__.py"]
    assert paths
    wrong = [
        name_of(path)
        for path in paths
        if not re.search(r"GNU General Public License v3.0\+|GPL-3.0-or-later", path.read_text()[:600])
    ]
    assert not wrong


def test_licences_of_the_distributions() -> None:
    assert "GNU GENERAL PUBLIC LICENSE" in (ROOT / "LICENSE").read_text()
    assert "Apache License" in (ROOT / "lake/LICENSE").read_text()

"""Documents point to what is there."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from house import ROOT, files, name_of

DOCUMENTS = [path for path in files() if path.suffix == ".md"]
LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+(?:\([^()\s]*\))?)\)")
CODE = re.compile(r"^(```|~~~).*?^\1\s*$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_resolve(path: Path) -> None:
    broken = []
    for link in LINK.findall(CODE.sub("", path.read_text())):
        place, _, anchor = unquote(link).partition("#")
        if re.match(r"[a-z]+:", place):
            continue
        target = (path.parent / place).resolve() if place else path
        lost = not target.is_relative_to(ROOT) or not target.exists()
        if lost or (anchor and target.suffix == ".md" and anchor not in _anchors(target)):
            broken.append(link)
    assert not broken


def _anchors(path: Path) -> set[str]:
    """The anchors that a forge makes of the headings."""
    headings = re.findall(r"^#+ +(.+?) *#*$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_leads_to_every_document() -> None:
    """A document that nobody links to is not found: each is reached from the README."""
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        path = waiting.pop()
        reached.add(path)
        for link in LINK.findall(CODE.sub("", path.read_text())):
            target = (path.parent / unquote(link).partition("#")[0]).resolve()
            if target.is_file() and target.suffix == ".md" and target not in reached:
                waiting.append(target)
    lost = [name_of(path) for path in DOCUMENTS if path.is_relative_to(ROOT / "docs") and path not in reached]
    assert not lost

"""The repository as its tests see it: its files, and who imports whom."""

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {"clachan": ROOT / "controller/src/clachan", "clachan_lake": ROOT / "lake/src/clachan_lake"}


@cache
def files() -> list[Path]:
    """Every file that is or is about to be in the repository."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    return sorted(path for name in listed if name and (path := ROOT / name).is_file() and not path.is_symlink())


def text_files() -> Iterator[tuple[Path, str]]:
    """Files with their text; binary ones are left out, and so are those of tests that are wrong on purpose."""
    for path in files():
        data = path.read_bytes()
        if b"\0" not in data and not (b"\xff" in data and path.suffix == ".bin"):
            yield path, data.decode()


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def python_files(*folders: str) -> list[Path]:
    wanted = [ROOT / folder for folder in folders] or [ROOT]
    return [path for path in files() if _is_python(path) and any(path.is_relative_to(folder) for folder in wanted)]


def _is_python(path: Path) -> bool:
    return path.suffix == ".py" or (path.parent == ROOT and path.name in {"clachan", "dev"})


def roles() -> list[Path]:
    return sorted(path for path in (ROOT / "roles").iterdir() if (path / "tasks").is_dir())


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def imports(path: Path, module: str = "") -> set[str]:
    """Full dotted names that a file imports, wherever in it; of `from a import b` both `a` and `a.b`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(node, path, module)
            found.update({source, *(f"{source}.{alias.name}" for alias in node.names)})
    return found


def _absolute(node: ast.ImportFrom, path: Path, module: str) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".") + (["__init__"] if path.name == "__init__.py" else [])
    return ".".join([*parts[: -node.level], *([node.module] if node.module else [])])


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the two distributions."""
    found = {}
    for package, folder in SOURCES.items():
        for path in python_files(name_of(folder)):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


@cache
def arrows() -> dict[str, frozenset[str]]:
    """Module -> the modules of the project that it imports."""
    known = modules()
    return {name: frozenset(imports(path, name) & known.keys() - {name}) for name, path in known.items()}


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")

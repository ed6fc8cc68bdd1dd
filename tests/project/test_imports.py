"""The arrows of the house point one way."""

import pytest
from house import ROOT, arrows, imports, modules, name_of, python_files, within

ALLOWED = {
    "clachan.contract": ["clachan.contract"],
    "clachan.client": ["clachan.client", "clachan.contract"],
    "clachan.cli": ["clachan.cli", "clachan.client", "clachan.contract", "clachan_lake"],
    "clachan.agent": ["clachan.agent", "clachan.client", "clachan.contract"],
    "clachan.server": ["clachan.server", "clachan.contract"],
    "clachan_lake": ["clachan_lake"],
}
"""Package -> what of the project its modules may import. `clachan` itself is the version."""

EXCEPTIONS = {("clachan.cli.platform_demo", "clachan_lake")}
"""The demo reads the lake as a user of it does, when that distribution is installed."""

LAYERS = {
    "clachan.server.decisions": ["clachan.server.decisions"],
    "clachan.server.db": ["clachan.server.db"],
    "clachan.server.services": ["clachan.server.services", "clachan.server.db", "clachan.server.decisions"],
    "clachan.server.api": ["clachan.server.api", "clachan.server.services"],
}
"""Layer of the controller -> the layers that its modules may reach, also through modules beside the layers."""

PLAIN = {"pydantic", "requests", "rich", "typer", "click", "clachan", "clachan_lake"}
"""What the plain install of `clachan` has: the SDK and the command need no extra."""

EXTRA = {"clachan.cli.lab_kernel": {"websocket"}}
"""Notebooks are run with the extra `lab`, and who has it not is told so."""

IMPURE = {
    "asyncio", "datetime.datetime.now", "fastapi", "io", "logging", "os", "pathlib", "random", "requests", "secrets",
    "shutil", "socket", "sqlalchemy", "sqlite3", "starlette", "subprocess", "tempfile", "threading", "time", "uuid",
}  # fmt: skip


def _modules(package: str) -> list[str]:
    found = [name for name in modules() if within(name, package)]
    assert found, f"package {package}: no modules, expected some"
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_what_stands_below_them(package: str) -> None:
    allowed = [*ALLOWED[package], "clachan.__version__"]
    wrong = [
        f"{name} imports {target}"
        for name in _modules(package)
        for target in sorted(arrows()[name])
        if target != "clachan" and not any(within(target, place) for place in allowed)
        if (name, target.partition(".")[0]) not in EXCEPTIONS
    ]
    assert not wrong


def test_the_lake_imports_nothing_of_clachan() -> None:
    wrong = [name for name in _modules("clachan_lake") if any(within(target, "clachan") for target in _all(name))]
    assert not wrong


def test_the_python_packages_never_import_the_collection() -> None:
    assert not [name for name in modules() if any(within(target, "ansible_collections") for target in _all(name))]


def test_plugins_reach_the_controller_over_http_only() -> None:
    paths = python_files("plugins")
    assert paths
    wrong = [
        f"{name_of(path)} imports {target}"
        for path in paths
        for target in imports(path)
        if within(target, "clachan") or within(target, "clachan_lake")
    ]
    assert not wrong


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_of_the_controller(layer: str) -> None:
    wrong = []
    for name in _modules(layer):
        for target in _reached(name):
            reached = next((other for other in LAYERS if within(target, other)), None)
            if reached and reached not in LAYERS[layer]:
                wrong.append(f"{name} reaches {target}")
    assert not wrong


def _reached(name: str) -> set[str]:
    """What a module imports, and what the modules beside the layers import that it imports."""
    reached: set[str] = set()
    waiting = [name]
    while waiting:
        for target in arrows()[waiting.pop()] - reached:
            reached.add(target)
            if not any(within(target, layer) for layer in LAYERS):
                waiting.append(target)
    return reached


def test_views_hold_no_sql_and_services_no_http() -> None:
    assert not [name for name in _modules("clachan.server.api") if _uses(name, {"sqlalchemy"})]
    services = _modules("clachan.server.services")
    assert not [name for name in services if _uses(name, {"fastapi", "starlette", "uvicorn"})]


def test_decisions_are_pure() -> None:
    wrong = {name: used for name in _modules("clachan.server.decisions") if (used := _uses(name, IMPURE))}
    assert not wrong


@pytest.mark.parametrize("package", ["clachan.contract", "clachan.client", "clachan.cli"])
def test_the_plain_install_is_enough_for_sdk_and_command(package: str) -> None:
    import sys

    wrong = {
        name: foreign
        for name in _modules(package)
        if (foreign := _packages(name) - PLAIN - EXTRA.get(name, set()) - sys.stdlib_module_names)
    }
    assert not wrong


def test_no_test_is_imported_by_what_is_shipped() -> None:
    assert not [
        name for name in modules() if any(within(target, "tests") or target == "conftest" for target in _all(name))
    ]


def _packages(name: str) -> set[str]:
    return {target.partition(".")[0] for target in _all(name)}


def _all(name: str) -> set[str]:
    return imports(modules()[name], name)


def _uses(name: str, forbidden: set[str]) -> set[str]:
    return {target for target in _all(name) for word in forbidden if within(target, word)}


def test_every_package_folder_is_a_package() -> None:
    folders = {path.parent for name, path in modules().items() if "migrations" not in name}  # alembic loads these
    assert not [name_of(folder) for folder in folders if not (folder / "__init__.py").exists()]
    assert ROOT.joinpath("controller/src/clachan/py.typed").exists()

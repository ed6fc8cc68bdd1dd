"""The module `environment`: made once from lock and wheels, made anew when they change or a kill left it half made."""

import hashlib
import importlib
import json
import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

from .conftest import Module, needs_root


def wheel(files: pathlib.Path, text: str) -> None:
    """files/wheels has a distribution `small` with one module, whose VALUE is the text, and a lock of nothing."""
    (files / "wheels").mkdir(parents=True, exist_ok=True)
    (files / "requirements").mkdir(exist_ok=True)
    (files / "requirements" / "nothing.txt").write_text("# nothing\n")
    with zipfile.ZipFile(files / "wheels" / "small-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("small.py", f"VALUE = {text!r}\ndef main(): print(VALUE)\n")
        archive.writestr("small-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n")
        archive.writestr("small-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("small-1.0.dist-info/entry_points.txt", "[console_scripts]\nsmall = small:main\n")
        archive.writestr("small-1.0.dist-info/RECORD", "")


def output(command: pathlib.Path) -> str:
    return subprocess.run([command], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_an_environment_is_made_and_replaced(module: Module, folder: pathlib.Path) -> None:
    files, path, commands = folder / "files", folder / "envs" / "e", folder / "bin"
    for directory in (path.parent, commands):
        directory.mkdir()
    wheel(files, "one")
    wanted = {
        "path": path,
        "files": files,
        "lock": "nothing",
        "wheels": ["small"],
        "commands": ["small"],
        "bin": commands,
    }
    assert module("environment", check=True, **wanted)["changed"]
    assert not path.exists()
    first = module("environment", **wanted)
    assert first["changed"], first
    assert output(commands / "small") == "one"
    assert module("environment", **wanted)["changed"] is False
    # half made: the stamp is missing
    (pathlib.Path(first["folder"]) / "clachan-environment").unlink()
    (pathlib.Path(first["folder"]) / "bin" / "small").unlink()
    assert module("environment", **wanted)["changed"]
    assert output(commands / "small") == "one"
    wheel(files, "two")
    second = module("environment", **wanted)
    assert second["diff"] == {
        "before": pathlib.Path(first["folder"]).name + "\n",
        "after": pathlib.Path(second["folder"]).name + "\n",
    }
    assert output(commands / "small") == "two"
    assert pathlib.Path(first["folder"]).exists()
    wheel(files, "three")
    module("environment", **wanted)
    assert output(commands / "small") == "three"
    assert not pathlib.Path(first["folder"]).exists()
    assert pathlib.Path(second["folder"]).exists()


def test_a_missing_wheel_is_named(module: Module, folder: pathlib.Path) -> None:
    wheel(folder, "one")
    result = module("environment", path=folder / "e", files=folder, lock="nothing", wheels=["large"])
    assert result["msg"] == f"wheel large in {folder}/wheels: 0 files, expected 1"


def test_check_mode_before_the_first_run(module: Module, folder: pathlib.Path) -> None:
    result = module("environment", path=folder / "e", files=folder / "none", lock="x", wheels=[], check=True)
    assert result["changed"]


@pytest.fixture
def code(collections: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """The module's functions."""
    monkeypatch.syspath_prepend(str(collections))
    return importlib.import_module("ansible_collections.clachan.platform.plugins.modules.environment")


def test_where_packages_come_from_is_remembered(
    code: object, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    remembered = folder / "pip.json"
    assert code.remember_variables(str(remembered)) == {}  # type: ignore[attr-defined]
    assert not remembered.exists()
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example/simple")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    given = {"PIP_INDEX_URL": "https://index.example/simple", "https_proxy": "http://proxy.example:3128"}
    secret = {"PIP_EXTRA_INDEX_URL": "https://me:secret@other.example/simple", "PIP_KEYRING_TOKEN": "a-word"}
    secret |= {"http_proxy": "me:secret@proxy.example:3128", "PIP_FIND_LINKS": "https://x.example/?key=secret"}
    for name, value in secret.items():
        monkeypatch.setenv(name, value)
    assert code.remember_variables(str(remembered)) == given | secret  # type: ignore[attr-defined]
    shared = folder / "pip.shared.json"
    assert (json.loads(shared.read_text()), shared.stat().st_mode & 0o777) == (given, 0o644), "without secrets"
    for name in secret:
        monkeypatch.delenv(name)
    assert code.remember_variables(str(remembered)) == given  # type: ignore[attr-defined]
    assert remembered.stat().st_mode & 0o777 == 0o600
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.delenv("https_proxy")
    assert code.remember_variables(str(remembered)) == given  # type: ignore[attr-defined]


def test_a_password_of_an_index_is_not_shown(code: object) -> None:
    shown = code.hide_passwords("Looking in https://me:secret@index.example/simple\n")  # type: ignore[attr-defined]
    assert shown == "Looking in https://***@index.example/simple\n"


@needs_root
@pytest.mark.root
def test_a_python_below_a_closed_folder_is_not_for_all(code: object, folder: pathlib.Path) -> None:
    closed = folder / "closed"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--copies", closed], check=True)
    closed.chmod(0o700)
    python = str(closed / "bin" / "python3")
    assert code._unfit(python, shared=False) is None  # type: ignore[attr-defined]
    assert code._unfit(python, shared=True) == f"lies below {closed}, which is closed to other users"  # type: ignore[attr-defined]
    os.chmod(python, 0o700)
    assert code._unfit(python, shared=True) == "is closed to other users"  # type: ignore[attr-defined]


class WithoutEnsurepip:
    """Ansible's module on a Debian without python3-venv: real commands, but Python has no ensurepip."""

    check_mode = False

    def __init__(self, **params: object) -> None:
        self.params = {"commands": None, "bin": None, "settings": None, **params}

    def run_command(self, command: list[str], cwd: str = "/", environ_update: dict[str, str] | None = None):
        if "import ensurepip" in command:
            return 1, "", "ModuleNotFoundError: No module named 'ensurepip'"
        process = subprocess.run(
            command, cwd=cwd, env=os.environ | (environ_update or {}), capture_output=True, text=True, check=False
        )
        return process.returncode, process.stdout, process.stderr

    def fail_json(self, **result: object) -> None:
        raise AssertionError(result)


@pytest.mark.slow
def test_the_pip_of_whoever_runs_ansible_serves_where_there_is_no_ensurepip(
    code: object, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(folder, "one")
    made = code.Environment(
        WithoutEnsurepip(path=str(folder / "e"), files=str(folder), lock="nothing", wheels=["small"])
    )  # type: ignore[attr-defined]
    assert made.make()
    assert output(folder / "e" / "bin" / "small") == "one"
    version = subprocess.run(
        [folder / "e/bin/python", "-m", "pip", "--version"], capture_output=True, text=True, check=True
    )
    assert str(folder / "e/lib") in version.stdout, "so that environments made from this one have a pip too"


@pytest.mark.slow
def test_an_environment_of_a_lock_elsewhere_and_no_wheels(module: Module, folder: pathlib.Path) -> None:
    wheel(folder / "files", "unused")
    (folder / "mine.txt").write_text("# nothing\n")
    wanted = {"path": folder / "e", "files": folder / "files", "lock": folder / "mine", "wheels": []}
    made = module("environment", **wanted)
    assert made["changed"], made
    assert module("environment", **wanted)["changed"] is False
    packages = [path.name for path in pathlib.Path(made["folder"]).glob("lib/python3*/site-packages/*")]
    assert not [name for name in packages if name.startswith("small")]
    (folder / "mine.txt").write_text("# other\n")
    assert module("environment", **wanted)["folder"] != made["folder"]


@needs_root
@pytest.mark.root
@pytest.mark.slow
def test_what_does_not_fit_leaves_nothing(module: Module, folder: pathlib.Path) -> None:
    wheel(folder / "files", "one")
    small = folder / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", small], check=False).returncode:
        pytest.skip("this machine cannot: no mounts")
    try:
        made = module("environment", path=small / "e", files=folder / "files", lock="nothing", wheels=["small"])
        assert made["msg"] == f"environment e: no room in {small}, expected more"
        assert [path.name for path in small.iterdir() if path.is_dir()] == []
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.slow
def test_the_nodes_settings_serve_who_has_none(
    module: Module, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_") or name.startswith(("SSL_", "REQUESTS_"))]:
        monkeypatch.delenv(name)
    wheel(folder / "files", "of the node")
    found = folder / "files/wheels/small-1.0-py3-none-any.whl"
    digest = hashlib.sha256(found.read_bytes()).hexdigest()
    (folder / "mine.txt").write_text(f"small==1.0 --hash=sha256:{digest}\n")
    settings = folder / "pip.shared.json"
    settings.write_text(json.dumps({"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(found.parent)}))
    place = folder / "own"
    place.mkdir()
    wanted = {"path": place / "e", "files": folder / "files", "lock": folder / "mine", "wheels": []}
    made = module("environment", settings=settings, **wanted)
    assert made["changed"], made
    assert output(place / "e/bin/small") == "of the node"

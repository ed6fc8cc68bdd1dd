"""The verbs `create`, `import` and `export` on a folder, a socket and a URL."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from clachan_lake.cli.creating import read_attrs, read_shape
from clachan_lake.opening import open_lake

from .making import Server
from .test_cli import cli


def targets(server: Server, folder: Path) -> dict[str, list[str]]:
    """Where a lake may be, as arguments: the target, and the options that go with it."""
    open_lake(folder).close()
    return {
        "folder": [str(folder)],
        "socket": [str(server.socket), "--blobs", str(server.folder / "blobs")],
        "url": [server.url, "--token-file", str(server.token_file)],
    }


def call(verb: str, lake: list[str], *arguments: str | Path, status: int = 0) -> str:
    return cli(verb, lake[0], *arguments, *lake[1:], status=status)


@pytest.mark.parametrize("where", ["folder", "socket", "url"])
def test_there_and_back(server: Server, tmp_path: Path, where: str) -> None:
    lake = targets(server, tmp_path / "lake")[where]
    values = np.arange(3000, dtype=">f4").reshape(-1, 3)
    np.save(tmp_path / "in.npy", values)
    assert call("import", lake, f"{where}/a", tmp_path / "in.npy") == f"{where}/a: 1000 x 3 of >f4, 12000 bytes\n"
    assert call("export", lake, f"{where}/a", tmp_path / "a.npy") == f"{tmp_path}/a.npy: 12128 bytes\n"
    assert np.load(tmp_path / "a.npy").tobytes() == values.tobytes()
    assert call("export", lake, f"{where}/a", tmp_path / "a.zarr") == f"{tmp_path}/a.zarr: 12000 bytes\n"
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a.zarr")[:], values)
    made = json.loads(call("import", lake, f"{where}/z", tmp_path / "a.zarr", "--json"))
    assert made == [{"name": f"{where}/z", "shape": [1000, 3], "dtype": "float32", "bytes": 12_000}]
    assert "exists, expected a new name" in call("import", lake, f"{where}/z", tmp_path / "a.zarr", status=1)
    assert "exists, expected a new name" in call("export", lake, f"{where}/z", tmp_path / "a.zarr", status=1)


@pytest.mark.parametrize("where", ["folder", "socket", "url"])
def test_create(server: Server, tmp_path: Path, where: str) -> None:
    lake = targets(server, tmp_path / "lake")[where]
    options = ["--shape", "2,0", "--dtype", "int16", "--order", "F", "--units", "V"]
    options += ["--attr", "rate=48000", "--attr", 'names=["left", "right"]', "--attr", "place=hall = big"]
    assert call("create", lake, f"{where}/c", *options) == f"{where}/c: 2 x 0 of int16, 0 bytes\n"
    shown = json.loads(call("show", lake, f"{where}/c", "--json"))["array"]
    assert shown["attrs"] == {"rate": 48000, "names": ["left", "right"], "place": "hall = big", "units": "V"}
    assert "exists, expected a new name" in call("create", lake, f"{where}/c", *options, status=1)
    fields = json.dumps([["t", "<i8"], ["v", "<f4", [3]]])
    assert "5 of [('t'" in call("create", lake, f"{where}/fields", "--shape", "5", "--dtype", fields)
    assert call("create", lake, f"{where}/one", "--shape", "()", "--dtype", "f8").startswith(
        f"{where}/one: one of float64"
    )
    for wrong, message in {
        "--shape=-1": "shape: '-1', expected whole numbers of at least 0",
        "--shape=a,b": "shape: 'a,b', expected whole numbers",
        "--dtype=O": "option --dtype, dtype: 'O', expected one of numpy's",
        "--dtype=[nope": "expected JSON",
        "--attr=x": "option --attr: 'x', expected NAME=JSON",
        "--order=A": "expected C or F" if where != "url" else "order: Input should be 'C' or 'F'",
    }.items():
        given = ["--shape=3", "--dtype=i2", wrong]
        assert message in call("create", lake, f"{where}/wrong", *given, status=1)
    assert f"{where}/wrong" not in call("list", lake)


@pytest.mark.parametrize("where", ["folder", "socket", "url"])
def test_a_failed_import_keeps_nothing(server: Server, tmp_path: Path, where: str) -> None:
    lake = targets(server, tmp_path / "lake")[where]
    np.save(tmp_path / "in.npy", np.arange(1000))
    whole = (tmp_path / "in.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-1])
    (tmp_path / "x.bin").write_bytes(whole)
    assert "cut.npy: 7999 bytes of data, expected 8000" in call("import", lake, "cut", tmp_path / "cut.npy", status=1)
    assert "expected a .npy file, or a folder with a Zarr array" in call(
        "import", lake, "b", tmp_path / "x.bin", status=1
    )
    assert "expected a Zarr array" in call("import", lake, "d", tmp_path, status=1)
    call("import", lake, "none", tmp_path / "none.npy", status=2)
    assert not {"cut", "b", "d", "none"} & {one["name"] for one in json.loads(call("list", lake, "--json"))["arrays"]}


def test_a_folder_that_is_served_is_exported_beside_its_server(server: Server, tmp_path: Path) -> None:
    server.session.put(f"{server.url}/arrays/meta?name=beside", json={"shape": [0], "dtype": "<u1"}, timeout=9)
    server.session.post(f"{server.url}/arrays/data?name=beside&rows=3", data=b"abc", timeout=9)
    cli("export", server.folder, "beside", tmp_path / "a.npy")
    assert np.load(tmp_path / "a.npy").tolist() == [97, 98, 99]


def test_words_of_the_options() -> None:
    assert [read_shape(text) for text in ("0,2", " 3", "5, 6,7", "()")] == [(0, 2), (3,), (5, 6, 7), ()]
    wanted: dict[str, Any] = {"a": 1, "b": "x=y", "c": None, "d": ""}
    assert read_attrs(["a=1", "b=x=y", "c=null", "d="]) == wanted

"""The command, as a user types it."""

import hashlib
import io
import json
import subprocess
import sys
import wave
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from clachan_lake.cli import main
from clachan_lake.local import LocalLake
from clachan_lake.opening import open_lake

from .making import Server, tone, wav


def cli(*arguments: str | Path, status: int = 0, **variables: str) -> str:
    """The command in this process; a process of its own costs a second of import."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["clachan-lake", *map(str, arguments)])
        for name, value in {"COLUMNS": "160", **variables}.items():
            patch.setenv(name, value)
        try:
            main()
            ended = 0
        except SystemExit as end:
            ended = int(end.code or 0)
    assert ended == status, out.getvalue() + err.getvalue()
    return out.getvalue() if status == 0 else out.getvalue() + err.getvalue()


def test_the_installed_command_runs() -> None:
    command = Path(sys.executable).with_name("clachan-lake")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == "0.1.0\n"


@pytest.fixture(scope="module")
def sent(server: Server) -> Server:
    files = server.directory / "files"
    files.mkdir()
    (files / "tone.wav").write_bytes(wav(tone(440, 1)))
    (files / "24.wav").write_bytes(wav(bytes(range(250)) * 3, bits=24))
    (files / "[bold]x.wav").write_bytes(b"no wav")
    names = ["tone.wav", "24.wav", "[bold]x.wav"]
    sent = cli(
        "ingest", server.url, *(files / name for name in names), "--policy", "wav", "--token-file", server.token_file
    )
    assert "tone.wav: 16044 bytes" in sent
    for name in names:
        server.transformed(name)
    return server


def test_list_and_show(sent: Server) -> None:
    for lake in (
        [sent.url, "--token-file", str(sent.token_file)],
        [sent.socket, "--blobs", str(sent.folder / "blobs")],
    ):
        shown = cli("list", *lake)
        assert "[bold]x.wav" in shown
        assert "expected RIFF....WAVE" in shown
        items = json.loads(cli("list", *lake, "--json"))
        assert [item["name"] for item in items["arrays"]] == ["24.wav", "tone.wav"]
        assert items["streams"][0]["transformations"][0]["state"] == "done"
        one = json.loads(cli("show", lake[0], "tone.wav", *lake[1:], "--json"))
        assert one["array"]["shape"] == [8000, 1]
        assert one["stream"]["sha256"] == hashlib.sha256(wav(tone(440, 1))).hexdigest()
    variables = {"CLACHAN_LAKE_TOKEN_FILE": str(sent.token_file)}
    assert "8000 x 1" in cli("list", sent.url, **variables)


def test_export(sent: Server, tmp_path: Path) -> None:
    token = ["--token-file", str(sent.token_file)]
    for name, file in [("tone.wav", "a.npy"), ("tone.wav", "a.wav"), ("24.wav", "b.wav"), ("tone.wav", "a.bin")]:
        cli("export", sent.url, name, tmp_path / file, *token)
    assert np.load(tmp_path / "a.npy").tobytes() == tone(440, 1)
    assert (tmp_path / "a.bin").read_bytes() == wav(tone(440, 1))
    with wave.open(str(tmp_path / "a.wav")) as sound:
        assert sound.readframes(9999) == tone(440, 1)
    with wave.open(str(tmp_path / "b.wav")) as sound:
        assert (sound.getsampwidth(), sound.readframes(999)) == (3, bytes(range(250)) * 3)
    assert "array 'nope': none of this name" in cli("export", sent.url, "nope", tmp_path / "n.npy", *token, status=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.npy", "a.wav", "b.wav"]


def test_picture(sent: Server, tmp_path: Path) -> None:
    token = ["--token-file", str(sent.token_file)]
    found = cli(
        "picture", sent.url, "tone.wav", "--png", tmp_path / "p.png", "--html", tmp_path / "p.html", "--json", *token
    )
    assert json.loads(found) == [{"name": "tone.wav", "samples": 8000, "channels": 1, "rate": 8000, "peak_hz": 440.0}]
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    assert "tone.wav" in (tmp_path / "p.html").read_text()


def test_verify_and_what_is_wrong(tmp_path: Path, sent: Server) -> None:
    with open_lake(tmp_path / "lake") as lake, lake.transaction():
        assert isinstance(lake, LocalLake)
        lake.arrays.create("a", 5000, "f8")[:] = 1
    assert cli("verify", tmp_path / "lake") == "every checksum holds\n"
    blob = next((tmp_path / "lake/blobs").rglob("*.blob"))
    blob.chmod(0o600)
    blob.write_bytes(b"x" * blob.stat().st_size)
    assert "array a, chunk 0" in cli("verify", tmp_path / "lake", status=1)
    assert json.loads(cli("verify", tmp_path / "lake", "--json", status=1))[0]["fault"].startswith("array a, chunk 0")
    assert "cannot be verified" in cli("verify", sent.url, status=1)
    assert "expected a folder, a socket or a URL" in cli("list", tmp_path / "none", status=1)
    assert not (tmp_path / "none").exists()
    assert "neither a stream nor an array" in cli("show", tmp_path / "lake", "b", status=1)
    assert "open in another process" in cli("list", sent.folder, status=1)
    cli("no-such-verb", status=2)
    assert "401 credentials" in cli("ingest", sent.url, blob, "--token-file", wrong_token(tmp_path), status=1)


def wrong_token(directory: Path) -> Path:
    path = directory / "wrong"
    path.write_text("a-wrong-token")
    return path

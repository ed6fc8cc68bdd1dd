"""Which recordings the demo takes, and how they come into the forwarder's folder."""

import hashlib
import pathlib
import stat

import pytest
from clachan.cli import platform_recordings
from clachan.cli.errors import CommandError
from clachan.cli.platform_recordings import take


@pytest.fixture
def demo(tmp_path: pathlib.Path) -> pathlib.Path:
    """demo/ of a home, with an empty folder of recordings."""
    (tmp_path / "demo" / "recordings").mkdir(parents=True)
    return tmp_path / "demo"


@pytest.fixture
def given(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "given" / "birds").mkdir(parents=True)
    (tmp_path / "given" / "a.wav").write_bytes(b"one")
    (tmp_path / "given" / "birds" / "Ö 1.WAV").write_bytes(b"two")
    (tmp_path / "given" / "notes.txt").write_text("not a recording")
    return tmp_path / "given"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def below(folder: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_wav_files_are_copied_once(demo: pathlib.Path, given: pathlib.Path) -> None:
    first = take(demo, given)
    assert first.source == str(given)
    assert first.digests == {"a.wav": sha256(b"one"), "birds/Ö 1.WAV": sha256(b"two")}
    assert first.new == ["a.wav", "birds/Ö 1.WAV"]
    assert below(demo) == ["recordings/a.wav", "recordings/birds/Ö 1.WAV"]
    assert stat.S_IMODE((demo / "recordings/a.wav").stat().st_mode) == 0o644
    assert stat.S_IMODE((demo / "recordings/birds").stat().st_mode) == 0o755
    again = take(demo, given)
    assert (again.new, again.digests) == ([], first.digests)
    without = take(demo, None)
    assert (without.source, without.new, without.digests) == ("what was taken before", [], first.digests)
    assert first.asked == again.asked == ["a.wav", "birds/Ö 1.WAV"]
    assert without.asked == []


def test_changed_content_comes_in_under_a_name_of_its_own(demo: pathlib.Path, given: pathlib.Path) -> None:
    take(demo, given)
    (given / "a.wav").write_bytes(b"other")
    name = f"a-{sha256(b'other')[:8]}.wav"
    changed = take(demo, given)
    assert changed.new == [name]
    assert (demo / "recordings" / "a.wav").read_bytes() == b"one"
    assert list(changed.digests) == [name, "birds/Ö 1.WAV", "a.wav"]
    assert take(demo, given).new == []


def test_what_cannot_be_taken_is_listed_and_holds_up_nothing(demo: pathlib.Path, given: pathlib.Path) -> None:
    (given / "gone.wav").symlink_to("/nowhere.wav")
    (given / "line\nbreak.wav").write_bytes(b"x")
    (given / "folder.wav").mkdir()
    taken = take(demo, given)
    assert taken.errors == {
        "gone.wav": "No such file or directory",
        "line\\nbreak.wav": "name, expected at most 512 bytes of printable text",
    }
    assert sorted(taken.digests) == ["a.wav", "birds/Ö 1.WAV"]
    assert below(demo) == ["recordings/a.wav", "recordings/birds/Ö 1.WAV"]


def test_a_folder_without_recordings_is_refused(demo: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CommandError) as refused:
        take(demo, tmp_path / "empty")
    assert str(refused.value) == f"folder {tmp_path / 'empty'}: no WAV files, expected some"


def test_before_up_there_is_no_folder(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CommandError) as refused:
        take(tmp_path / "demo", None)
    wanted = f"folder {tmp_path}/demo/recordings: does not exist, expected 'clachan up' to have made it"
    assert str(refused.value) == wanted


def test_the_machines_own_recordings_are_preferred(
    demo: pathlib.Path, given: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform_recordings, "ON_THE_MACHINE", given)
    assert take(demo, None).source == f"this machine's {given}"


def test_everything_that_was_tried_is_said(
    demo: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform_recordings, "ON_THE_MACHINE", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(CommandError) as refused:
        take(demo, None)
    lines = str(refused.value).splitlines()
    assert lines[0] == "recordings: none found, expected some or --input DIR"
    assert [line.split(",")[0].split(":")[0].strip() for line in lines[1:]] == [
        str(tmp_path / "none"),
        "Debian's package alsa-utils",
        "the test signals in the wheel of scipy",
    ]

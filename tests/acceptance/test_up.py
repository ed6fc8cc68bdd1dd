"""The platform as its first user meets it. The order of the tests is the order of a first day."""

import hashlib
import json
import math
import pathlib
import re
import struct
import time
import wave

import pytest

from .conftest import Newcomer

pytestmark = [pytest.mark.heavy, pytest.mark.root, pytest.mark.timeout(1800)]


def instance(newcomer: Newcomer, path: str) -> dict:
    return next(
        item for item in json.loads(newcomer.clachan("instance", "list", "--json").output) if item["path"] == path
    )


def wait_until(what: str, seconds: float, condition) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.5)
    raise AssertionError(f"{what}: not within {seconds} s")


def test_up_does_the_main_job(newcomer: Newcomer) -> None:
    first = newcomer.clachan("up")
    print(f"first up: {first.seconds:.0f} s")
    picture = pathlib.Path(re.search(r"(/\S+\.png)", first.plain.replace("\n", "")).group(1))
    assert picture.read_bytes().startswith(b"\x89PNG")
    for word in ("files", "bytes", "samples", "rate"):
        assert re.search(word, first.plain, re.IGNORECASE), first.plain


def test_the_numbers_are_the_recordings(newcomer: Newcomer) -> None:
    recordings = sorted((newcomer.home / "demo" / "recordings").rglob("*.wav"))
    assert recordings
    status = json.loads(newcomer.clachan("demo", "--json").output)
    shown = {item["tag"]: item for item in status["recordings"]}
    for path in recordings:
        tag = str(path.relative_to(newcomer.home / "demo" / "recordings"))
        assert shown[tag]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert shown[tag]["bytes"] == path.stat().st_size
        with wave.open(str(path)) as reader:
            assert shown[tag]["samples"] == reader.getnframes()
            assert shown[tag]["rate"] == reader.getframerate()
            assert shown[tag]["channels"] == reader.getnchannels()


def test_a_tone_peaks_in_its_bin(newcomer: Newcomer) -> None:
    folder = newcomer.folder / "tone"
    folder.mkdir()
    with wave.open(str(folder / "tone_440.wav"), "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(8000)
        writer.writeframes(
            b"".join(struct.pack("<h", int(12000 * math.sin(2 * math.pi * 440 * n / 8000))) for n in range(16000))
        )
    newcomer.run("true")
    status = json.loads(newcomer.clachan("demo", "--input", str(folder), "--json").output)
    tone = next(item for item in status["recordings"] if item["tag"].endswith("tone_440.wav"))
    assert tone["peak_hz"] == pytest.approx(440, abs=8000 / 16000)


def test_a_second_up_changes_nothing(newcomer: Newcomer) -> None:
    second = newcomer.clachan("up")
    print(f"second up: {second.seconds:.1f} s")
    changed = re.findall(r"changed=(\d+)", second.plain)
    assert changed
    assert set(changed) == {"0"}


def test_lake_and_forwarder_are_started(newcomer: Newcomer) -> None:
    for path in ("home.lake", "home.forwarder"):
        shown = instance(newcomer, path)
        assert shown["observed"]["state"] == "started"
        assert shown["observed"]["promises"]
        assert all(promise["ok"] for promise in shown["observed"]["promises"].values())


def test_the_commands_of_the_readme_work(newcomer: Newcomer) -> None:
    blocks = re.findall(r"^```\n(.*?)^```", (newcomer.clone / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks[0].split("\n") == ["./clachan up", "./dev test", ""]
    wait_until("usage", 130, lambda: "home.lake" in newcomer.clachan("usage", "--json").output)
    for line in blocks[1].splitlines():
        shown = newcomer.run(*line.split())
        assert "home.lake" in shown.plain, line


def test_the_inventory_has_both(newcomer: Newcomer) -> None:
    graph = newcomer.ansible("ansible-inventory", "-i", "inventories/standalone", "--graph").plain
    for group in ("tenant_home", "software_lake", "software_forwarder", "instances", "nodes"):
        assert f"@{group}:" in graph
    assert graph.count("home.lake") >= 3


def test_a_push_gives_the_same_and_needs_reveal(newcomer: Newcomer) -> None:
    push = ["-i", "inventories/standalone", "clachan.platform.converge", "--limit", "*.lake"]
    assert "changed=0" in newcomer.ansible("ansible-playbook", *push).plain
    newcomer.clachan("user", "create", "watcher", "--role", "operator")
    made = json.loads(newcomer.clachan("token", "create", "--user", "watcher", "--json").output)
    newcomer.variables["CLACHAN_TOKEN"] = made["token"]
    try:
        refused = newcomer.ansible("ansible-playbook", *push, expect=None)
    finally:
        del newcomer.variables["CLACHAN_TOKEN"]
    assert refused.status != 0
    assert "reveal" in refused.plain
    slot = pathlib.Path(instance(newcomer, "home.lake")["slot"]["directory"])
    assert not any("<secret>" in path.read_text() for path in (slot / "etc").rglob("*") if path.is_file())


def runs(newcomer: Newcomer) -> list[dict]:
    return json.loads(newcomer.clachan("events", "--kind", "run", "--json").output)


def test_one_changed_parameter_is_one_run(newcomer: Newcomer) -> None:
    before, forwarder = runs(newcomer), instance(newcomer, "home.forwarder")
    old = instance(newcomer, "home.lake")
    newcomer.clachan("request", "home.lake", "clachan.platform.lake", "-p", "lake_idle_seconds=77")
    wait_until(
        "revision converged", 60, lambda: instance(newcomer, "home.lake")["observed"]["revision"] == old["revision"] + 1
    )
    new = [event for event in runs(newcomer) if event not in before]
    assert [event["data"]["hosts"] for event in new] == [["home.lake"]]
    assert instance(newcomer, "home.forwarder")["observed"]["since"] == forwarder["observed"]["since"]
    again = newcomer.clachan("request", "home.lake", "clachan.platform.lake", "-p", "lake_idle_seconds=77")
    assert again.status == 0
    assert instance(newcomer, "home.lake")["revision"] == old["revision"] + 1
    newcomer.clachan("request", "home.lake", "--rollback", str(old["revision"]))
    back = instance(newcomer, "home.lake")
    assert back["revision"] == old["revision"] + 2
    assert back["parameters"] == old["parameters"]


def test_it_heals_without_the_controller(newcomer: Newcomer) -> None:
    supervisor = newcomer.home / "supervisor"

    def control(*words: str) -> str:
        python = next((newcomer.home / "envs").glob("*/bin/supervisorctl"))
        return newcomer.run(str(python), "-s", f"unix://{supervisor}/supervisor.sock", *words, expect=None).plain

    wait_until("lake green", 60, lambda: instance(newcomer, "home.lake")["observed"]["state"] == "started")
    slot = instance(newcomer, "home.lake")["slot"]["name"]
    before = json.loads(newcomer.clachan("events", "--kind", "outage", "--json").output)
    control("stop", "controller")

    def pid() -> int:
        """0 while it is being started."""
        line = next((line for line in control("status").splitlines() if slot in line and "pid" in line), "pid 0")
        return int(re.search(r"pid (\d+)", line).group(1))

    victim = pid()
    newcomer.run("kill", "-9", str(victim))
    wait_until("the lake's process is back", 15, lambda: pid() not in {0, victim})
    time.sleep(6)
    control("start", "controller")
    wait_until("the controller answers", 30, lambda: newcomer.clachan("instance", "list", expect=None).status == 0)

    def outages() -> list[dict]:
        listed = json.loads(newcomer.clachan("events", "--kind", "outage", "--json").output)
        return [event for event in listed if event not in before and event["path"] == "home.lake"]

    wait_until("the outage is reported", 60, lambda: len(outages()) > 0)
    wait_until("green again", 60, lambda: instance(newcomer, "home.lake")["observed"]["state"] == "started")
    assert len(outages()) == 1


def test_usage_is_counted(newcomer: Newcomer) -> None:
    wait_until("usage of the lake", 130, lambda: "home.lake" in newcomer.clachan("usage", "--json").output)
    records = json.loads(newcomer.clachan("usage", "--json").output)
    assert {"home.lake", "home.forwarder"} <= {record["path"] for record in records}
    assert all(isinstance(record["quantity"], int) for record in records)


def test_secrets_are_nowhere(newcomer: Newcomer) -> None:
    revealed = json.loads(newcomer.clachan("instance", "show", "home.lake", "--reveal", "--json").output)
    token = revealed["published"]["token"]
    assert len(token) >= 32
    # what the node needs, what the controller answers from, and the facts between them: all 0600
    allowed = {
        newcomer.home / name
        for name in (
            "node/slice.json",
            "controller/clachan.db",
            "controller/clachan.db-wal",
            "node/spool.db",
            "node/spool.db-wal",
        )
    }
    assert all(
        path.stat().st_mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0 for path in allowed if path.exists()
    )
    files = (path for path in newcomer.home.rglob("*") if path.is_file() and not path.is_symlink())
    skipped = {newcomer.home / "slots", newcomer.home / "envs"}
    searched = [path for path in files if path not in allowed and not skipped & set(path.parents)]
    leaks = [str(path.relative_to(newcomer.home)) for path in searched if token.encode() in path.read_bytes()]
    assert leaks == []
    assert not any(token in line for line in newcomer.processes())
    assert token not in newcomer.ansible("ansible-inventory", "-i", "inventories/standalone", "--list").plain
    assert token not in newcomer.clachan("events", "--json").output


def test_down_keeps_and_reset_removes(newcomer: Newcomer) -> None:
    newcomer.clachan("down")
    wait_until("nothing runs", 20, lambda: newcomer.processes() == [])
    down = newcomer.clachan("status", expect=1).plain
    assert "not reachable (Connection refused)\n\nNothing runs. `clachan up` starts it.\n" in down
    assert (newcomer.home / "controller" / "clachan.db").exists()
    newcomer.clachan("up")
    assert instance(newcomer, "home.lake")["observed"]["state"] == "started"
    newcomer.clachan("reset", "--yes")
    assert newcomer.processes() == []
    assert not newcomer.home.exists()
    # ~/.ansible is of the ansible commands that the tests gave themselves
    assert {path.name for path in newcomer.folder.glob(".*")} <= {".ansible"}
    assert "clachan_0" not in pathlib.Path("/etc/passwd").read_text()

"""What the lake's tests make: a running server, WAV files, waiting."""

import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

TOKEN = "a-token-of-the-tests"
POLICIES = [{"name": "raw"}, {"name": "wav", "transformation": "wav"}]


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 20) -> Any:
    """The first true result; fails with `what` after the time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {seconds} s")


class Server:
    """`clachan-lake serve` as a process, on a folder that outlives it."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.directory = directory
        self.folder = directory / "lake"
        self.socket = directory / "lake.sock"
        self.token_file = directory / "token"
        self.token_file.write_text(TOKEN + "\n")
        self.settings = settings
        self.port = 0
        self.limits: Callable[[], None] | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"Bearer {TOKEN}"

    @property
    def log(self) -> str:
        return (self.directory / "serve.log").read_text()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> "Server":
        address = self.directory / "address"
        address.unlink(missing_ok=True)
        config = {
            "folder": str(self.folder),
            "socket": str(self.socket),
            "token_file": str(self.token_file),
            "port": self.port,
            "address_file": str(address),
            "policies": POLICIES,
            "worker_seconds": 2,
            "minimum_free_mib": 0,
            **self.settings,
        }
        (self.directory / "serve.json").write_text(json.dumps(config))
        with (self.directory / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-m", "clachan_lake.serve", str(self.directory / "serve.json")],
                stderr=log,
                preexec_fn=self.limits,
            )
        wait_for(lambda: address.exists() or self.process.poll() is not None, "address", 60)
        assert address.exists(), self.log
        self.port = int(json.loads(address.read_text())["url"].rpartition(":")[2])
        return self

    def kill(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        if self.process is None or self.process.poll() is not None:
            return self.process.returncode if self.process else 0
        self.process.terminate()
        return self.process.wait(20)

    def close(self) -> None:
        self.session.close()
        self.stop()

    def post(self, body: bytes, policy: str = "raw", **parameters: Any) -> requests.Response:
        return self.session.post(f"{self.url}/ingest/{policy}", params=parameters, data=body, timeout=20)

    def get(self, path: str, **parameters: Any) -> requests.Response:
        return self.session.get(self.url + path, params=parameters, timeout=20)

    def stream(self, name: str) -> dict[str, Any]:
        return self.get("/streams/meta", name=name).json()

    def transformed(self, name: str, seconds: float = 20) -> dict[str, Any]:
        """The stream's description once its one transformation is done or has failed; that is under the key
        `transformation`."""

        def ended() -> dict[str, Any] | None:
            found = self.stream(name)
            for one in found.get("transformations", []):
                if one["state"] in {"done", "failed"}:
                    return {**found, "transformation": one}
            return None

        return wait_for(ended, f"transformation of {name}", seconds)


def wav(
    frames: bytes,
    channels: int = 1,
    rate: int = 8000,
    bits: int = 16,
    code: int = 1,
    *,
    data_size: int | None = None,
    riff_size: int | None = None,
    extra: bytes = b"",
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A WAV file, byte by byte, so that it may also lie."""
    frame = channels * (-(-bits // 8))
    form = struct.pack("<HHIIHH", code, channels, rate, rate * frame, frame, bits) + extra
    size = len(frames) if data_size is None else data_size
    body = b"WAVE" + before + b"fmt " + struct.pack("<I", len(form)) + form
    body += b"data" + struct.pack("<I", size) + frames + after
    return b"RIFF" + struct.pack("<I", len(body) if riff_size is None else riff_size) + body


def tone(hz: float, seconds: float, rate: int = 8000, amplitude: float = 0.5) -> bytes:
    """16 bit frames of a sine."""
    count = round(seconds * rate)
    values = (round(amplitude * 32767 * math.sin(2 * math.pi * hz * n / rate)) for n in range(count))
    return struct.pack(f"<{count}h", *values)


def end(process: "subprocess.Popen[Any]") -> None:
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()

"""A kernel of a lab, as long as it is needed: Jupyter's messages over a WebSocket. Needs the extra `lab`."""

import json
import time
import uuid
from collections.abc import Iterator
from math import inf
from types import TracebackType
from typing import Any, Self

from clachan.cli.errors import CommandError
from clachan.cli.lab_server import Lab, RefusedError

QUIET_SECONDS = 30
READY_SECONDS = 120
ENDINGS, PAUSE_SECONDS, NOT_FOUND = 10, 0.5, 404
GONE = ("dead", "restarting", "autorestarting")
OUTPUTS = ("stream", "display_data", "execute_result", "error")


class Kernel:
    """`with Kernel(lab, "science") as kernel: kernel.execute("1 + 1")`; ended with its block."""

    def __init__(self, lab: Lab, name: str) -> None:
        self._lab = lab
        self._name = name
        self._session = uuid.uuid4().hex
        self._id = ""
        self._line: Any = None

    def __enter__(self) -> Self:
        self._id = str(self._lab.ask("POST", "/api/kernels", {"name": self._name})["id"])
        try:
            self._line = self._connect()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.close()
        self._end()

    def _connect(self) -> Any:
        try:
            import websocket
        except ModuleNotFoundError as error:
            raise CommandError(
                f"package {error.name}: missing, expected it to run notebooks: pip install 'clachan[lab]'"
            ) from error
        where = f"ws{self._lab.base.removeprefix('http')}/api/kernels/{self._id}/channels?session_id={self._session}"
        try:
            return websocket.create_connection(
                where,
                header=self._lab.headers,
                timeout=QUIET_SECONDS,
                http_no_proxy=["*"],
                sslopt={"context": self._lab.context()},
            )
        except (OSError, websocket.WebSocketException) as error:
            raise CommandError(f"lab {self._lab.path}, kernel {self._name}: {error}, expected a connection") from error

    def _end(self) -> None:
        """Jupyter refuses it while it starts a kernel anew that died. What went wrong before is what is to be told."""
        for _ in range(ENDINGS):
            try:
                self._lab.ask("DELETE", f"/api/kernels/{self._id}")
            except RefusedError as error:
                if error.http_status == NOT_FOUND:
                    return
                time.sleep(PAUSE_SECONDS)
            except CommandError:
                return
            else:
                return

    def execute(self, code: str, limit: float = inf) -> Iterator[dict[str, Any]]:
        """The cell's outputs as they come, in a notebook's form; ends when it has run. Raises CommandError when the
        kernel dies, the lab is gone, or nothing is heard of it at `limit`, a time of `time.monotonic`."""
        asked = self._send(code, counted=limit == inf)
        replied = idle = False
        while not (replied and idle):
            message = self._receive(limit)
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] in GONE:
                raise CommandError(f"kernel {self._name}: died, perhaps of memory, expected it to run the cell")
            if message["parent_header"].get("msg_id") != asked:
                continue
            if kind in OUTPUTS:
                yield _output(kind, content)
            replied |= kind == "execute_reply"
            idle |= kind == "status" and content["execution_state"] == "idle"

    def _send(self, code: str, counted: bool) -> str:
        import websocket

        asked = uuid.uuid4().hex
        header = {"msg_id": asked, "msg_type": "execute_request", "session": self._session, "version": "5.3"}
        message = {
            "header": header | {"username": "", "date": ""},
            "parent_header": {},
            "metadata": {},
            "content": {"code": code, "silent": not counted, "store_history": counted, "allow_stdin": False},
            "channel": "shell",
            "buffers": [],
        }
        try:
            self._line.send(json.dumps(message))
        except (OSError, websocket.WebSocketException) as error:
            raise self._lost(error) from error
        return asked

    def _receive(self, limit: float) -> dict[str, Any]:
        """The next message. A cell may be quiet for hours: then it is asked whether the kernel is still there."""
        import websocket

        while True:
            try:
                text = self._line.recv()
            except websocket.WebSocketTimeoutException:
                self._lab.ask("GET", f"/api/kernels/{self._id}")
                if time.monotonic() > limit:
                    raise CommandError(f"kernel {self._name}: silent, expected it to be ready in time") from None
                continue
            except (OSError, websocket.WebSocketException) as error:
                raise self._lost(error) from error
            if isinstance(text, str) and text:  # in binary ones are buffers of widgets, which no result needs
                found: dict[str, Any] = json.loads(text)
                return found

    def _lost(self, error: Exception) -> CommandError:
        return CommandError(f"lab {self._lab.path}: {error}, expected it to stay while the notebook runs")

    def wait(self) -> None:
        """Until it answers."""
        list(self.execute("None", time.monotonic() + READY_SECONDS))


def _output(kind: str, content: dict[str, Any]) -> dict[str, Any]:
    if kind == "stream":
        return {"output_type": kind, "name": content["name"], "text": content["text"]}
    if kind == "error":
        return {"output_type": kind, **{key: content[key] for key in ("ename", "evalue", "traceback")}}
    shown = {"output_type": kind, "data": content["data"], "metadata": content.get("metadata", {})}
    return shown | ({"execution_count": content["execution_count"]} if kind == "execute_result" else {})

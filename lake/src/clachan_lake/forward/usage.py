"""The platform's usage records, read from its controller (`GET /api/v1/usage`) and handed on as they are.

One JSON object a line: `id` (the same record has the same one, everywhere), `node`, `instance`, `path`, `tenant`,
`account`, `meter` (`cpu_milliseconds`, `memory_mib_seconds`, `disk_mib_seconds`, `instance_seconds`), `window_start`
and `window_end` (UTC, ISO 8601), `quantity` (a whole number), `billable`.

Records come in order of their windows, but a node that was away reports late. So each look goes back a little, one
look an hour a week, and what was seen before is known by its id.
"""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from clachan_lake.forward.connection import Connection, UnreachableError, reason
from clachan_lake.forward.spool import Spool

TAG = "usage"
PAGE = 500
NEAR, FAR = timedelta(hours=1), timedelta(days=7)
FAR_SECONDS = 3600.0
KEYS = ("id", "window_start")


class UsageReader:
    def __init__(self, connection: Connection, spool: Spool) -> None:
        self._connection = connection
        self._spool = spool
        self._far_at = -FAR_SECONDS

    def turn(self) -> None:
        """Keep what is new in the spool; nothing is asked for while that is full. Raises OSError, ValueError."""
        latest = self._spool.latest()
        far = time.monotonic() - self._far_at >= FAR_SECONDS
        since = _earlier(latest, FAR if far else NEAR) if latest else None
        # what is forgotten is older than any look goes back
        forget = _earlier(latest, 2 * FAR) if latest else ""
        for page in self._pages(since):
            self._spool.add_seen(TAG, [_line(record) for record in page], forget)
            if self._spool.full:
                return
        if far:
            self._far_at = time.monotonic()

    def _pages(self, since: str | None) -> Iterator[list[dict[str, Any]]]:
        query: dict[str, Any] = {"limit": PAGE} | ({"since": since} if since else {})
        while True:
            answer = self._connection.request("GET", f"/api/v1/usage?{urlencode(query)}")
            if answer.status != 200:
                raise UnreachableError(f"usage records: {reason(answer, 200)}", answer.retry_after, answer.status)
            page = json.loads(answer.body)
            if not isinstance(page, dict) or not isinstance(page.get("items"), list):
                raise ValueError("usage records: expected an object with items")
            yield page["items"]
            if not page.get("cursor"):
                return
            query["cursor"] = page["cursor"]


def _line(record: Any) -> tuple[str, str, bytes]:
    if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in KEYS):
        raise ValueError(f"usage record: {record!r:.80}, expected an object with {' and '.join(KEYS)}")
    return record["id"], record["window_start"], (json.dumps(record, separators=(",", ":")) + "\n").encode()


def _earlier(moment: str, span: timedelta) -> str:
    """In the form of the records, so that texts compare as times do; of now, when `moment` is still to come."""
    now = datetime.now(UTC)
    found = min(datetime.fromisoformat(moment).astimezone(UTC), now) - span
    return found.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"

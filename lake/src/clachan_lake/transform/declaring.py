"""Transformations of a local lake: name -> document. A change belongs to a transaction."""

import time
from typing import Any

from clachan_lake import following
from clachan_lake.documents import Documented
from clachan_lake.errors import MissingError
from clachan_lake.following import Key
from clachan_lake.interface import Transformations
from clachan_lake.transform import document, position, queue, resetting
from clachan_lake.transform.document import Transformation

ACTIONS = ("pause", "resume", "retry", "backfill")
SHOWN = 100


class LocalTransformations(Documented, Transformations):
    kind = "transformations"
    _lake: Any

    def declare(self, name: str, /, **keys: Any) -> bool:
        wanted = document.read(name, keys)
        if "paused" not in keys and name in self:
            wanted = Transformation(**{**wanted.__dict__, "paused": bool(self[name].get("paused"))})
        made = name not in self
        changed = self._documents.put(name, wanted.document())
        if changed:
            # so that a source that is made at the same time conflicts with it (`following.attach`)
            self._documents.tree._p_changed = True
            self._attach(name, wanted, made)
        return changed

    def adopt(self) -> int:
        """Follow sources that a declaration has missed, as they were being made; how many."""
        count = 0
        for name in self:
            try:
                wanted = document.read(name, self[name])
            except ValueError:
                continue
            known = set(self._keys(name))
            self._attach(name, wanted, False)
            count += len(set(self._keys(name)) - known)
        return count

    def delete(self, name: str) -> None:
        record = self._documents.record(name)
        for key in self._keys(name):
            self._unfollow(key)
        # who runs it now is to see that it changed
        record.revision += 1
        self._documents.delete(name)

    def pause(self, name: str) -> bool:
        return self._documents.put(name, {**self[name], "paused": True})

    def resume(self, name: str) -> bool:
        return self._documents.put(name, {**self[name], "paused": False})

    def retry(self, name: str, source: str | None = None) -> int:
        return sum(self._retry(key) for key in self._some(name, source))

    def backfill(self, name: str, source: str | None = None) -> int:
        keys = self._some(name, source)
        for key in keys:
            found = position.get(self._lake, key) or position.Position()
            resetting.reset(self._lake, key, found, among={key[1] for key in keys})
            position.put(self._lake, key, found)
            self._mark(key)
        # the calls that run now are thrown away
        self._documents.record(name).revision += 1
        return len(keys)

    def describe(self, name: str) -> dict[str, Any]:
        record = self._documents.record(name)
        found = [self._progress(key) for key in self._keys(name)]
        return {
            "transformation": name,
            **self._documents[name],
            "revision": record.revision,
            "created": record.created,
            "modified": record.modified,
            "sources": len(found),
            "lag_bytes": sum(one["lag_bytes"] for one in found),
            "lag_seconds": max((one["lag_seconds"] for one in found), default=0.0),
            "troubled": sum(one["state"] in {"failed", "retrying"} for one in found),
            "dead": sum(one["dead"] for one in found),
        }

    def positions(self, name: str, after: str = "", limit: int = SHOWN) -> list[dict[str, Any]]:
        self._documents.record(name)
        found = []
        for key in self._keys(name):
            if f"{key[0]}/{key[1]}" > after:
                found.append(self._progress(key))
                if len(found) == limit:
                    break
        return found

    def _progress(self, key: Key) -> dict[str, Any]:
        kind, source, name = key
        found = position.get(self._lake, key) or position.Position()
        end, lag_bytes, since = _lag(self._lake, key, found)
        paused = self[name].get("paused") and found.status not in {"failed", "done"}
        return {
            "kind": kind,
            "source": source,
            "state": "paused" if paused else found.status,
            "position": found.position,
            "size": end,
            "lag_bytes": lag_bytes,
            "lag_seconds": max(0.0, time.time() - since / 1000) if lag_bytes else 0.0,
            "failures": found.failures,
            "next_try": found.next_try,
            "message": found.message,
            "warnings": found.warnings,
            "output": found.output,
            "outputs": found.outputs,
            "dead": found.dead,
            "updated": found.updated,
        }

    def _attach(self, name: str, wanted: Transformation, made: bool) -> None:
        """Sources that are there get this follower, or lose it."""
        root, given = self._lake.root(), wanted.document()
        known = {key[:2] for key in self._keys(name)}
        for kind in ("stream", "array"):
            for source, record in root[f"{kind}s"].items():
                if not following.matches(given, kind, source, getattr(record, "policy", None)):
                    continue
                if _is_followed(record, (kind, source), name, wanted, known) or _made_by(
                    self._lake, kind, source, name
                ):
                    known.discard((kind, source))
                    continue
                self._follow(kind, record, name, wanted, made)
                known.discard((kind, source))
        for kind, source in known:
            self._unfollow((kind, source, name))

    def _follow(self, kind: str, record: Any, name: str, wanted: Transformation, made: bool) -> None:
        start = 0
        if made and wanted.from_ == "now":
            start = record.size if kind == "stream" else self._lake.arrays[record.name].rows
        following.follow(self._lake, kind, record, name, wanted.document(), position=start)

    def _unfollow(self, key: Key) -> None:
        record = self._lake.root()[f"{key[0]}s"].get(key[1])
        if record is None:
            queue.forget(self._lake, key)
        else:
            following.unfollow(self._lake, key[0], record, key[2])

    def _retry(self, key: Key) -> bool:
        found = position.get(self._lake, key)
        if found is None:
            return False
        letters = [number for number, one in self._lake.dead.items() if _is_of(one, key)]
        if not (letters or found.failures or found.next_try or found.status == "failed"):
            return False
        found.replays, found.serial = letters, None
        found.failures, found.next_try, found.status = 0, None, "waiting"
        position.put(self._lake, key, found)
        self._mark(key)
        return True

    def _mark(self, key: Key) -> None:
        if key[0] == "stream":
            stream = self._lake.streams[key[1]]
            wants = dict(stream.record.followers).get(key[2], "chunk")
            if wants == "chunk" or stream.final:
                following.mark(stream.record, self._lake.root()["due"], wants)

    def _keys(self, name: str) -> list[Key]:
        return [key for key in self._lake.root()["positions"] if key[2] == name]

    def _some(self, name: str, source: str | None) -> list[Key]:
        self._documents.record(name)
        found = [key for key in self._keys(name) if source is None or key[1] == source]
        if source is not None and not found:
            raise MissingError(f"transformation {name}, source {source!r:.80}: none that it follows")
        return found


def _is_followed(record: Any, key: tuple[str, str], name: str, wanted: Transformation, known: set[Any]) -> bool:
    """Whether nothing is to be changed."""
    return key in known and (key[0] == "array" or (name, wanted.on) in record.followers)


def _is_of(letter: dict[str, Any], key: Key) -> bool:
    return key == (letter.get("source_kind"), letter.get("source"), letter.get("transformation"))


def _made_by(lake: Any, kind: str, source: str, name: str) -> bool:
    records = lake.streams if kind == "stream" else lake.arrays
    return bool(records[source].attrs.get("transformation") == name)


def _lag(lake: Any, key: Key, found: position.Position) -> tuple[int, int, int]:
    """Where the source ends, how many bytes are not done, and since when (ms since 1970)."""
    kind, source, _ = key
    if kind == "array":
        if source not in lake.arrays:
            return 0, 0, 0
        array, state = lake.arrays[source], lake.root()["arrays"][source].state
        return array.rows, max(0, array.rows - found.position) * array.row_bytes, state.modified
    stream = lake.streams.find(source)
    if stream is None:
        return 0, 0, 0
    at = max(found.position, stream.start)
    first = next(stream.chunks(at), None) if at < stream.size else None
    return stream.size, max(0, stream.size - at), first[2] if first else 0

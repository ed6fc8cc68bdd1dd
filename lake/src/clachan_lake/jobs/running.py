"""The process of one job: loads the call, makes it, writes what came of it.

`python -m clachan_lake.jobs.running FOLDER PARENT`. In the folder are `call`, and `settings.json` {"memory_mib",
"scheduler", "python", "environment"}; it leaves `outcome.json` {"state", "kind", "message"} and `result`. What the call
prints goes to its standard output and error. It dies with its parent.
"""

import json
import os
import pickle
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from clachan_lake.jobs import call as calls
from clachan_lake.orphans import die_with

DASK_SECONDS = 10


def main(folder: Path, parent: int) -> None:
    die_with(parent)
    settings = json.loads((folder / "settings.json").read_text())
    _limit(settings["memory_mib"])
    differing = calls.differences(settings["environment"])
    try:
        outcome = _outcome(folder, settings)
    except BaseException as error:
        print("".join(traceback.format_exception(error.with_traceback(_frames(error)))), file=sys.stderr)  # noqa: T201
        if differing:
            print(f"This may have to do with it: {'; '.join(differing)}", file=sys.stderr)  # noqa: T201
        outcome = {"state": "failed", "message": last_line(error)}
    draft = folder / "outcome.tmp"
    draft.write_text(json.dumps(outcome))
    draft.rename(folder / "outcome.json")
    sys.stdout.flush()
    sys.stderr.flush()
    # threads that the call has left behind do not hold it up
    os._exit(0)


def _outcome(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    asked = settings["environment"].get("python", calls.python())
    if asked != calls.python():
        raise RuntimeError(f"job: code of Python {asked}, expected {calls.python()}, which this worker has")
    with (folder / "call").open("rb") as file:
        function, args, kwargs = pickle.load(file)  # noqa: S301 - what this process is for
    made = _on_cluster(settings["scheduler"], function, args, kwargs) if settings["scheduler"] else None
    returned = function(*args, **kwargs) if made is None else made[0]
    from clachan_lake.jobs import value

    with (folder / "result").open("wb") as out:
        return {"state": "done", "message": "", "kind": value.write(returned, out)}


def _on_cluster(
    address: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any]:
    """What a Dask cluster's worker returns; that the function's lake is this one goes along."""
    from distributed import Client

    from clachan_lake.jobs.away import Away
    from clachan_lake.opening import given

    with Client(address, timeout=DASK_SECONDS, set_as_default=False) as client:  # type: ignore[no-untyped-call]
        future = client.submit(Away(function, given()), *args, **kwargs, pure=False)
        return (future.result(),)


def _frames(error: BaseException) -> TracebackType | None:
    """Those of the call, without this module's."""
    first = found = error.__traceback__
    while found is not None and found.tb_frame.f_code.co_filename == __file__:
        found = found.tb_next
    return found or first


def last_line(error: BaseException) -> str:
    """As the traceback's last line says it."""
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[-1][:1000]


def _limit(memory_mib: int | None) -> None:
    """Of data, not of addresses: arrays that are mapped from files are not in the way, nor what libraries reserve."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_mib:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_mib << 20, memory_mib << 20))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

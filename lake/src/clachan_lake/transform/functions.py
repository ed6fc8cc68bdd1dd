"""The function of a transformation, found where it runs: in the worker or on a cluster, never in the lake's process."""

import importlib
from typing import Any

from clachan_lake.transform.batch import ContentError, Function
from clachan_lake.transform.document import Transformation
from clachan_lake.transform.options import READERS


class FunctionError(ContentError):
    """There is no such function."""


def find(name: str, transformation: Transformation) -> Function:
    """Imports or executes what the transformation names. Raises FunctionError; whatever that code raises."""
    if transformation.function in READERS:
        module = importlib.import_module(f"clachan_lake.transform.{transformation.function}")
        found: Any = module.transform
    elif transformation.code is not None:
        found = _of_code(name, transformation.code)
    else:
        found = _of_module(str(transformation.function))
    if not callable(found):
        raise FunctionError(f"transformation {name}: {found!r:.80}, expected a function")
    return found  # type: ignore[no-any-return]


def _of_code(name: str, code: str) -> Any:
    space: dict[str, Any] = {"__name__": "transformation"}
    exec(compile(code, f"<transformation {name}>", "exec"), space)  # noqa: S102 - it is what a worker is for
    if "transform" not in space:
        raise FunctionError(
            f"transformation {name}, key code: expected that it defines transform(batch, output, state)"
        )
    return space["transform"]


def _of_module(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise FunctionError(f"function {path}: {error!s:.200}, expected one that is installed in the worker") from None

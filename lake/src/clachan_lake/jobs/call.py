"""A call as bytes: a pickle of (function, arguments, named arguments), which only a worker ever loads."""

import io
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from importlib import metadata
from types import ModuleType
from typing import Any

from clachan_lake.jobs.document import PACKAGES

HEAD_BYTES = 1 << 20
"""So much of a call is searched for names of modules: code comes before data."""


def pack(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    modules: Iterable[ModuleType] = (),
    keep: Callable[[Any], str] | None = None,
) -> bytes:
    """Functions of a notebook or script go with their code, others by the name that the worker imports; of `modules`
    the code goes too. With `keep`, large arrays become parts (`clachan_lake.jobs.parts`). Raises TypeError,
    PicklingError for what cannot be sent."""
    import cloudpickle

    if not callable(function):
        raise TypeError(f"job: {function!r:.80}, expected a function")
    with ExitStack() as carried:
        for module in modules:
            cloudpickle.register_pickle_by_value(module)
            carried.callback(cloudpickle.unregister_pickle_by_value, module)
        file = io.BytesIO()
        if keep is None:
            cloudpickle.dump((function, args, dict(kwargs)), file, protocol=5)
        else:
            from clachan_lake.jobs.parts import Pickler

            Pickler(file, keep).dump((function, args, dict(kwargs)))
    return file.getvalue()


def python() -> str:
    """The version that code goes between: other ones have another bytecode."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def environment(call: bytes) -> dict[str, Any]:
    """Versions of Python and of the packages that a call names."""
    names = {found.decode() for found in set(re.findall(rb"[A-Za-z_][A-Za-z0-9_]{1,80}", call[:HEAD_BYTES]))}
    known = sorted(name for name in names if name in sys.modules and name not in sys.stdlib_module_names)
    packages = {name: version for name in known if (version := _version(name))}
    return {"python": python(), "packages": dict(list(packages.items())[:PACKAGES])}


def differences(asked: Mapping[str, Any]) -> list[str]:
    """What is other here than where the job was submitted."""
    found = [("Python", asked.get("python", python()), python())]
    found += [(name, version, _version(name) or "none") for name, version in asked.get("packages", {}).items()]
    return [f"{name} {there} where it was submitted, {here} here" for name, there, here in found if there != here]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)[:100]
    except metadata.PackageNotFoundError:
        version = getattr(sys.modules.get(name), "__version__", None)
        return version[:100] if isinstance(version, str) else None


def label(function: Callable[..., Any]) -> str:
    """A name for people."""
    inner = getattr(function, "func", function)
    found = getattr(inner, "__qualname__", None) or type(inner).__qualname__
    text = "".join(one for one in str(found) if one.isprintable())
    return text[:200] or "job"

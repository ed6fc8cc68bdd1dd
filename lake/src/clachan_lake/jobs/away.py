"""A call that is made in a process of a Dask cluster, with the lake of its job as the one that `open_lake()` opens."""

from collections.abc import Callable
from typing import Any

from clachan_lake.opening import Place, here


class Away:
    def __init__(self, function: Callable[..., Any], place: Place | None) -> None:
        self._function = function
        self._place = place
        self.__name__ = getattr(function, "__name__", "job")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        token = here.set(self._place)
        try:
            return self._function(*args, **kwargs)
        finally:
            here.reset(token)

    def __repr__(self) -> str:
        # shown by the cluster: without the token
        return f"<call of {self.__name__}>"

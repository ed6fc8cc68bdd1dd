"""What the service's settings declare, put into the lake when it starts.

A policy of which they say no more than its name and its transformation is made where there is none; what is there then
stays as somebody has made it since. One of which they say more, and the transformations that they name, are made what
they say at each start.
"""

from typing import Any

from clachan_lake.ingest.config import Config
from clachan_lake.local import LocalLake
from clachan_lake.policies.policy import Policy
from clachan_lake.transform.declaring import LocalTransformations

POLICY = Policy()
"""The tag is the stream's name, and all is kept."""


def declare(lake: LocalLake, config: Config) -> None:
    """In one transaction; without a commit where all is so. Raises ValueError that names what cannot be."""
    wanted = dict(
        _transformation(name, one.transformation) for name, one in config.policies.items() if one.transformation
    )
    lake.refresh()
    transformations = LocalTransformations(lake)
    with lake.transaction("what the settings declare"):
        lake.policies.add_missing({name: POLICY for name, one in config.policies.items() if one.document is None})
        for name, one in config.policies.items():
            if one.document is not None:
                lake.policies.declare(name, **one.document)
        for name, keys in wanted.items():
            if name not in transformations and name not in config.transformations:
                transformations.declare(name, **keys)
        for name, keys in config.transformations.items():
            transformations.declare(name, **keys)


def _transformation(policy: str, function: str) -> tuple[str, dict[str, Any]]:
    """Its name and what it is declared with."""
    keys = {"function": function, "source": {"kind": "stream", "policy": policy}, "on": "end"}
    return policy if policy == function else f"{policy}.{function}", keys

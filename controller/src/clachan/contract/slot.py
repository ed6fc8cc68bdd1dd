"""The slot's directory: the border between a software role and the agent.

    SLOT/                   root:slot  0750   (one owner in the unprivileged mode)
      etc/                  root:slot  0750   only root writes here
        services.d/NAME.json    Service     a process to keep running
        promises.d/NAME.json    Promise     a check that must pass
        requests.d/NAME.json    Declaration (contract.api)  the complete set of wanted children
        published.json          Published   values for the user, the parent and references
      log/                  root:root  0750   NAME.log of each service, rotated by the supervisor
      var/                  slot:slot  0700   the service's own data

NAME is a contract name. A document is at most `DOCUMENT_BYTES` long, a directory has at most `DOCUMENTS` of them.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, TypeAdapter

from clachan.contract import Document
from clachan.contract.names import Name

DOCUMENT_BYTES = 64 * 1024
DOCUMENTS = 256


def _inside(path: str) -> str:
    if any(part in {"", ".", ".."} for part in path.split("/")) or not path.isprintable():
        raise ValueError(f"path {path!r}, expected one below the slot: relative, without '.', '..' or empty parts")
    return path


Inside = Annotated[str, StringConstraints(max_length=512), AfterValidator(_inside)]
Argument = Annotated[str, StringConstraints(max_length=8192, pattern=r"^[^\x00]*$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Seconds = Annotated[float, Field(gt=0, le=3600)]


class Service(Document):
    """A process that the agent keeps running as the slot's user, in the slot."""

    command: Annotated[list[Argument], Field(min_length=1, max_length=256)]
    environment: dict[Variable, Argument] = {}
    directory: Inside = "var"
    restart_on: list[Inside] = []
    """Files of the slot (relative to it): the service is restarted when the content of one changed."""
    stop_seconds: Annotated[int, Field(ge=1, le=600)] = 10
    open_files: Annotated[int, Field(ge=64, le=1048576)] | None = None


class _Check(Document):
    title: str = ""
    every_seconds: Seconds = 5
    timeout_seconds: Seconds = 5


class ProcessPromise(_Check):
    """The service runs and was not restarted since the last check."""

    kind: Literal["process"]
    service: Name


class TcpPromise(_Check):
    kind: Literal["tcp"]
    address: str
    port: Annotated[int, Field(ge=1, le=65535)]


class HttpPromise(_Check):
    kind: Literal["http"]
    url: Annotated[str, StringConstraints(pattern=r"^https?://")]
    status: Annotated[int, Field(ge=100, le=599)] = 200
    contains: str | None = None


class CommandPromise(_Check):
    """The command, run as the slot's user, exits with 0; its last line of output is the message."""

    kind: Literal["command"]
    command: Annotated[list[Argument], Field(min_length=1, max_length=256)]


class FileAgePromise(_Check):
    kind: Literal["file_age"]
    path: Inside
    max_seconds: Seconds


class DiskSpacePromise(_Check):
    kind: Literal["disk_space"]
    path: Inside = "var"
    min_free_mib: Annotated[int, Field(ge=0)]


class ChildrenPromise(_Check):
    """Every child that the slot requests is in the state that it is wanted in."""

    kind: Literal["children"]


Promise = Annotated[
    ProcessPromise | TcpPromise | HttpPromise | CommandPromise | FileAgePromise | DiskSpacePromise | ChildrenPromise,
    Field(discriminator="kind"),
]
PROMISE: TypeAdapter[Promise] = TypeAdapter(Promise)

PublishedValues = Annotated[dict[Name, str | int | float | bool], Field(max_length=64)]
PUBLISHED: TypeAdapter[PublishedValues] = TypeAdapter(PublishedValues)

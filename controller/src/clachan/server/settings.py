"""Every setting of the controller, once, with its default and its help: HOME/controller/config.json."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from clachan.contract import Document
from clachan.contract.names import CONTROLLER

Seconds = Annotated[int, Field(ge=1)]


class Settings(Document):
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(default=8443, description="TCP port; 0 takes a free one.")
    names: list[str] = Field(
        default=["localhost", "127.0.0.1"], description="Names and addresses that the server certificate is for."
    )
    database_url: str | None = Field(
        default=None,
        description="SQLAlchemy URL (postgresql+psycopg://...); null: SQLite in HOME/controller/clachan.db.",
    )
    platform_collection: str | None = Field(
        default=None, description="Directory of the installed collection clachan.platform; null: no platform software."
    )
    loopback: bool = Field(default=True, description="Nodes' slots get addresses of 127.0.0.0/8, else of 10.0.0.0/8.")
    certificate_days: Annotated[int, Field(ge=1)] = Field(default=90, description="Life of a node's certificate.")
    server_certificate_days: Annotated[int, Field(ge=1)] = Field(
        default=90, description="Life of the server's own certificate; renewed after two thirds of it."
    )
    wait_seconds: Seconds = Field(default=60, description="Longest wait of a long poll.")
    online_seconds: Seconds = Field(default=90, description="A node not heard of for so long is shown offline.")
    answer_seconds: Seconds = Field(default=10, description="How long a node may take to answer a question (logs).")
    stream_idle_seconds: Seconds = Field(
        default=7200, description="A stream (instance connect) that moves no byte for so long is ended."
    )
    event_days: Annotated[int, Field(ge=1)] = Field(default=90, description="How long events are kept.")
    fact_days: Annotated[int, Field(ge=1)] = Field(
        default=400, description="How long the ids of facts other than usage are kept, to know a repeat."
    )
    body_kib: Annotated[int, Field(ge=1)] = Field(default=1024, description="Largest JSON body.")
    batch_kib: Annotated[int, Field(ge=1)] = Field(default=32768, description="Largest batch of facts.")
    artifact_kib: Annotated[int, Field(ge=1)] = Field(default=262144, description="Largest collection artifact.")
    unpacked_kib: Annotated[int, Field(ge=1)] = Field(default=1048576, description="Largest content of an artifact.")
    image_gib: Annotated[int, Field(ge=1)] = Field(default=64, description="Largest image, as file and as disk.")
    free_mib: Annotated[int, Field(ge=0)] = Field(
        default=512, description="Free space that uploaded images must leave on the controller's disk."
    )
    log_level: str = Field(
        default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least level that is logged."
    )

    @property
    def server_names(self) -> list[str]:
        """What the server certificate is for; VMs have a name of their own for it."""
        return list(dict.fromkeys([*self.names, CONTROLLER]))


class SettingsError(ValueError):
    """The configuration is wrong; the message names the key and the file."""


def load(home: Path) -> Settings:
    """Read HOME/controller/config.json; defaults when there is none."""
    path = home / "controller" / "config.json"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Settings()
    try:
        return Settings.model_validate(json.loads(content))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "(all)"
        raise SettingsError(f"setting {key} in {path}: {first['input']!r}, expected: {first['msg']}") from error
    except ValueError as error:
        raise SettingsError(f"settings {path}: not JSON ({error}), expected an object") from error

"""Registered software: builds of roles, each known by its FQCN and its collection's digest."""

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import select, update

from clachan.contract.api import Page
from clachan.contract.software import SoftwareView
from clachan.server.db.models import Instance, Software, Supply
from clachan.server.services import artifacts, requests, standings
from clachan.server.services.controller import Change, Controller
from clachan.server.services.pages import Wanted
from clachan.server.services.refusals import Conflict, Invalid, NotFound, TooLarge

PLATFORM_AUTHOR = "platform"


class Upload(NamedTuple):
    """An artifact on disk, not yet looked at."""

    path: Path
    sha256: str
    size: int


async def receive(controller: Controller, chunks: AsyncIterator[bytes]) -> Upload:
    """Stream an artifact to disk; raises TooLarge, and leaves nothing when it is cut."""
    limit = controller.settings.artifact_kib * 1024
    controller.artifacts.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".upload-", dir=controller.artifacts)
    digest, size = hashlib.sha256(), 0
    try:
        with os.fdopen(handle, "wb") as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > limit:
                    raise TooLarge(f"artifact: more than {limit} bytes, expected at most that")
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())
    except BaseException:
        Path(name).unlink()
        raise
    return Upload(Path(name), digest.hexdigest(), size)


def register(controller: Controller, upload: Upload, author: str) -> Page[SoftwareView]:
    """Register the roles of an uploaded artifact and keep it. The same again changes nothing."""
    try:
        collection = artifacts.read_artifact(upload.path, controller.settings.unpacked_kib * 1024)
        if collection.name == artifacts.PLATFORM:
            raise Invalid(f"artifact: collection {collection.name} is the platform's own, expected another")
        if not collection.roles:
            raise Invalid(f"artifact: collection {collection.name} has no role with meta/clachan.yml, expected one")
        # on disk before it is known: a row never points to nothing
        upload.path.replace(controller.artifacts / f"{upload.sha256}.tar.gz")
    except BaseException:
        upload.path.unlink(missing_ok=True)
        raise
    with controller.change() as change:
        rows = [_register(change, collection, role, upload, author) for role in collection.roles]
        change.capacity = True
        return Page[SoftwareView](items=[view(row) for row in rows])


def register_platform(controller: Controller) -> None:
    """At start: the software of the installed platform collection; what uses an older build of it gets this one."""
    if controller.settings.platform_collection is None:
        return
    folder = Path(controller.settings.platform_collection)
    if not (folder / "MANIFEST.json").exists():
        raise Invalid(f"setting platform_collection: {folder}, expected an installed collection with MANIFEST.json")
    collection = artifacts.read_installed(folder)
    if collection.name != artifacts.PLATFORM:
        raise Invalid(f"setting platform_collection: {collection.name}, expected {artifacts.PLATFORM}")
    with controller.change() as change:
        for role in collection.roles:
            row = _register(change, collection, role, None, PLATFORM_AUTHOR)
            _move_to(controller, change, row)
        change.capacity = True


def _register(
    change: Change, collection: artifacts.Collection, role: artifacts.Role, upload: Upload | None, author: str
) -> Software:
    session = change.session
    found = session.scalar(select(Software).where(Software.fqcn == role.fqcn, Software.digest == collection.digest))
    if found is not None:
        if upload is not None and found.artifact_sha256 is None:
            raise Conflict(f"software {role.fqcn}: is the platform's own, expected another")
        if found.current or upload is not None:
            return found
    session.execute(update(Software).where(Software.fqcn == role.fqcn).values(current=False))
    row = found or Software(
        fqcn=role.fqcn,
        digest=collection.digest,
        collection=collection.name,
        version=collection.version,
        artifact_sha256=upload.sha256 if upload is not None else None,
        size=upload.size if upload is not None else 0,
        platform=upload is None,
        meta=role.meta.model_dump(mode="json"),
        types=role.types,
        registered=change.now,
    )
    row.current = True
    session.add(row)
    session.flush()
    what = f"software {role.fqcn} {collection.version} registered by {author}"
    change.event("software_registered", what, data={"software": role.fqcn, "digest": collection.digest})
    return row


def _move_to(controller: Controller, change: Change, row: Software) -> None:
    """Only one build of the platform is installed on nodes: its supplies and instances follow it."""
    others = select(Software.id).where(Software.fqcn == row.fqcn, Software.id != row.id)
    for supply in change.session.scalars(select(Supply).where(Supply.software_id.in_(others))).unique().all():
        supply.software, supply.observed, supply.message = row, "waiting", ""
        change.touch_node(supply.node_id)
    for instance in change.session.scalars(select(Instance)).unique().all():
        build = instance.revision.software
        if build.fqcn == row.fqcn and build.id != row.id and instance.revision.type in row.types:
            requests.copy_revision(controller, change, instance, PLATFORM_AUTHOR, software=row)
            standings.refresh(controller, change, [instance])


def search(controller: Controller, wanted: Wanted) -> Page[SoftwareView]:
    with controller.read() as session:
        return wanted.page(session, select(Software), [Software.fqcn, Software.id], view)


def get(controller: Controller, fqcn: str, digest: str | None) -> SoftwareView:
    query = select(Software).where(Software.fqcn == fqcn)
    with controller.read() as session:
        row = session.scalar(query.where(Software.current if digest is None else Software.digest == digest))
        if row is None:
            raise NotFound(f"software {fqcn}: unknown, expected a registered one")
        return view(row)


def artifact_path(controller: Controller, sha256: str) -> Path:
    """The file of a registered artifact."""
    with controller.read() as session:
        known = session.scalar(select(Software.id).where(Software.artifact_sha256 == sha256).limit(1))
    path = controller.artifacts / f"{sha256}.tar.gz"
    if known is None or not path.exists():
        raise NotFound(f"artifact {sha256}: unknown, expected that of a registered software")
    return path


def view(row: Software) -> SoftwareView:
    return SoftwareView.model_validate(
        {
            "software": row.fqcn,
            "digest": row.digest,
            "collection": row.collection,
            "version": row.version,
            "artifact_sha256": row.artifact_sha256,
            "meta": row.meta,
            "types": row.types,
            "registered": row.registered,
        }
    )

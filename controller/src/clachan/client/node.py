"""What a node asks of the controller: its slice, to report, its certificate, questions, artifacts."""

from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from pydantic import Field

from clachan.client.transport import API, Transport, Versioned
from clachan.contract import Document
from clachan.contract.api import (
    Answer,
    CertificateRequest,
    Joined,
    Question,
    Questions,
    VmToken,
    VmTokenDeclaration,
)
from clachan.contract.facts import Batch, Verdicts
from clachan.contract.inventory import WRAPPER, Inventory


class WrappedInventory(Document):
    """The inventory in its wire form."""

    inventory: Annotated[Inventory, Field(alias=WRAPPER)]


class NodeRoutes(Transport):
    """The routes of a node, which need its certificate."""

    def slice(self, etag: str | None = None, wait: int = 0) -> Versioned[WrappedInventory] | None:
        """The node's slice when it differs from `etag`; None when it is the same still after `wait` seconds."""
        return self._poll(f"{API}/nodes/self/inventory", WrappedInventory, etag, wait)

    def report(self, batch: Batch) -> Verdicts:
        """Facts, each with its id: sending one again changes nothing."""
        return self._post(f"{API}/nodes/self/reports", batch, Verdicts, idempotent=True)

    def renew(self, csr: str) -> Joined:
        return self._post(f"{API}/nodes/self/certificate", CertificateRequest(csr=csr), Joined, idempotent=True)

    def vm_token(self, wanted: VmTokenDeclaration, dry_run: bool = False) -> VmToken:
        """The token of a VM that this node hosts; a former one is worthless then."""
        query = {"dry_run": "true" if dry_run else None}
        return self._parsed(self._call("POST", f"{API}/nodes/self/join-tokens", body=wanted, query=query), VmToken)

    def questions(self, wait: int = 0) -> list[Question]:
        """What users ask of this node; empty when nothing came in `wait` seconds."""
        got = self._poll(f"{API}/nodes/self/questions", Questions, None, wait)
        return got.document.questions if got else []

    def answer(self, question: str, answer: Answer) -> None:
        self._call("POST", f"{API}/nodes/self/answers/{quote(question, safe='')}", body=answer)

    def download_artifact(self, sha256: str, destination: Path) -> None:
        """Fetch a collection's artifact to `destination`, which is replaced only by the right bytes."""
        self._download(f"{API}/artifacts/{sha256}", f"artifact {sha256}", sha256, destination)

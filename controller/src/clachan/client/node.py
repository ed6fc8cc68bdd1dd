"""What a node asks of the controller: to join, its slice, to report, its certificate, questions, artifacts."""

import hashlib
import http.client
import ssl
from pathlib import Path
from typing import Annotated
from urllib.parse import quote, urlsplit

from pydantic import Field

from clachan.client.errors import BadAnswerError, ClientError, UnreachableError, UntrustedError
from clachan.client.transport import API, CONNECT_SECONDS, Transport, Versioned
from clachan.contract import Document
from clachan.contract.api import (
    Answer,
    CertificateRequest,
    Joined,
    JoinRequest,
    Question,
    Questions,
    VmToken,
    VmTokenDeclaration,
)
from clachan.contract.facts import Batch, Verdicts
from clachan.contract.inventory import WRAPPER, Inventory

FINGERPRINT_CHARS = 32
CA_BYTES = 64 * 1024


class WrappedInventory(Document):
    """The inventory in its wire form."""

    inventory: Annotated[Inventory, Field(alias=WRAPPER)]


class NodeRoutes(Transport):
    """The routes of a node; all but `join` need its certificate."""

    def join(self, request: JoinRequest) -> Joined:
        """Exchange a join token and a CSR for a certificate; the same key again gets the same certificate."""
        return self._post(f"{API}/join", request, Joined, idempotent=True)

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


def fetch_ca(url: str) -> tuple[str, str]:
    """The controller's CA (PEM) and its sha256 fingerprint (hex), over a connection that proves nothing.

    Whoever answers may lie: compare the fingerprint with one that came another way before trusting the CA.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise ClientError(f"controller url: {url!r}, expected https://HOST[:PORT]")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection(
        parts.hostname, parts.port or 443, timeout=CONNECT_SECONDS, context=context
    )
    try:
        connection.request("GET", f"{API}/ca")
        pem = connection.getresponse().read(CA_BYTES).decode("ascii")
        return pem, hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    except ValueError as error:
        raise BadAnswerError(
            f"answer to GET {API}/ca of {url}: no certificate, expected a Clachan controller"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(
            f"controller {url}: not reachable ({getattr(error, 'strerror', None) or error})"
        ) from error
    finally:
        connection.close()


def trusted_ca(url: str, join_token: str) -> str:
    """The controller's CA (PEM), trusted as its fingerprint is the one in the join token; else UntrustedError."""
    expected, _, secret = join_token.partition(".")
    if len(expected) != FINGERPRINT_CHARS or not secret:
        raise ClientError("join token: not of the form, expected 32 hex digits, a dot and a secret")
    pem, fingerprint = fetch_ca(url)
    if not fingerprint.startswith(expected.lower()):
        raise UntrustedError(f"CA of {url}: fingerprint {fingerprint}, expected one that begins with {expected}")
    return pem

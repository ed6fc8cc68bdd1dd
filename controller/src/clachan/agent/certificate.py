"""Who the node is: its key, which never leaves it, and the certificate that the controller's CA gave for it.

Joining stands on the standard library and the primitives of `cryptography`: a machine that was just made joins with
it, and `cryptography.x509`, `requests` and `pydantic` are seconds of an emulated processor.
"""

import json
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from clachan.agent.layout import AgentError, Layout, write_whole
from clachan.client.errors import BadAnswerError
from clachan.client.streams import Streams
from clachan.client.trust import trusted_ca

if TYPE_CHECKING:
    from clachan.client import Client

RENEW_AT = 2 / 3
"""Of its life."""
INTEGER, BITS, UTF8, SEQUENCE, SET, ATTRIBUTES = 0x02, 0x03, 0x0C, 0x30, 0x31, 0xA0
"""Tags of DER."""
COMMON_NAME = bytes.fromhex("0603550403")
ECDSA_SHA256 = bytes.fromhex("06082a8648ce3d040302")


def signing_request(layout: Layout, name: str) -> str:
    """A CSR (PEM) for the node's key, which is made when there is none: a PKCS #10 of RFC 2986."""
    key = _key(layout.key)
    subject = _der(SEQUENCE, _der(SET, _der(SEQUENCE, COMMON_NAME, _der(UTF8, name.encode()))))
    request = _der(SEQUENCE, _der(INTEGER, b"\0"), subject, _public(key), _der(ATTRIBUTES))
    signature = _der(BITS, b"\0", key.sign(request, ec.ECDSA(hashes.SHA256())))
    whole = _der(SEQUENCE, request, _der(SEQUENCE, ECDSA_SHA256), signature)
    return ssl.DER_cert_to_PEM_cert(whole).replace(" CERTIFICATE-", " CERTIFICATE REQUEST-")


def _der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    length = [size] if size < 128 else [0x81, size] if size < 256 else [0x82, *divmod(size, 256)]
    return bytes([tag, *length]) + content


def _public(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    if path.exists():
        key = serialization.load_pem_private_key(path.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise AgentError(f"key {path}: {type(key).__name__}, expected an EC key")
        return key
    key = ec.generate_private_key(ec.SECP256R1())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_whole(path, key.private_bytes(*form))
    return key


def life(path: Path) -> tuple[datetime, datetime]:
    """The certificate's begin and end (UTC)."""
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    return certificate.not_valid_before_utc, certificate.not_valid_after_utc


def renewal_due(path: Path, now: datetime | None = None) -> bool:
    """Whether two thirds of the certificate's life are over."""
    begin, end = life(path)
    return (now or datetime.now(UTC)) >= begin + (end - begin) * RENEW_AT


def join(layout: Layout, url: str, name: str, token: str) -> None:
    """Exchange a join token for a certificate, trusting only the CA that the token names; repeating it is harmless.

    Raises AgentError when this machine is another node already, or what the client raises.
    """
    if layout.identity.exists() and (known := layout.load_identity()).name != name:
        raise AgentError(f"node {name}: this machine is the node {known.name}, expected one that has not joined")
    layout.node.mkdir(mode=0o700, exist_ok=True)
    write_whole(layout.ca, trusted_ca(url, token).encode())
    request = {"token": token, "node": name, "csr": signing_request(layout, name)}
    joined = Streams(url, ca_file=layout.ca).document("/join", request)
    try:
        identifier, certificate, ca = (str(joined[key]) for key in ("id", "certificate", "ca"))
    except (KeyError, TypeError) as error:
        raise BadAnswerError(f"answer to POST /join of {url}: {error!r}, expected a certificate") from error
    write_whole(layout.identity, json.dumps({"id": identifier, "name": name}).encode() + b"\n", 0o644)
    # last: who has a certificate has joined
    _keep(layout, name, certificate, ca)


def renew(layout: Layout, client: "Client") -> datetime:
    """A certificate for the same key; whoever makes the next connection uses it. Gives its end.

    While the present one is young the controller gives it again.
    """
    joined = client.renew(signing_request(layout, layout.load_identity().name))
    _keep(layout, joined.node, joined.certificate, joined.ca)
    return life(layout.certificate)[1]


def _keep(layout: Layout, name: str, certificate: str, ca: str) -> None:
    if _public(_key(layout.key)) not in ssl.PEM_cert_to_DER_cert(certificate):
        raise AgentError(f"certificate of {name}: for another key, expected one for {layout.key}")
    write_whole(layout.ca, ca.encode())
    write_whole(layout.certificate, certificate.encode())


def exposed(path: Path) -> bool:
    """Whether others may read the file."""
    return bool(path.stat().st_mode & 0o077)

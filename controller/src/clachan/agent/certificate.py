"""Who the node is: its key, which never leaves it, and the certificate that the controller's CA gave for it."""

from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from clachan.agent.layout import AgentError, Identity, Layout, write_whole
from clachan.client import Client, trusted_ca
from clachan.contract.api import Joined, JoinRequest

RENEW_AT = 2 / 3
"""Of its life."""


def signing_request(layout: Layout, name: str) -> str:
    """A CSR (PEM) for the node's key, which is made when there is none."""
    key = _key(layout.key)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()


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
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    return certificate.not_valid_before_utc, certificate.not_valid_after_utc


def renewal_due(path: Path, now: datetime | None = None) -> bool:
    """Whether two thirds of the certificate's life are over."""
    begin, end = life(path)
    return (now or datetime.now(UTC)) >= begin + (end - begin) * RENEW_AT


def join(layout: Layout, url: str, name: str, token: str) -> Identity:
    """Exchange a join token for a certificate, trusting only the CA that the token names; repeating it is harmless.

    Raises AgentError when this machine is another node already, or what the client raises.
    """
    if layout.identity.exists() and (known := layout.load_identity()).name != name:
        raise AgentError(f"node {name}: this machine is the node {known.name}, expected one that has not joined")
    layout.node.mkdir(mode=0o700, exist_ok=True)
    ca = trusted_ca(url, token)
    write_whole(layout.ca, ca.encode())
    request = JoinRequest(token=token, node=name, csr=signing_request(layout, name))
    with Client(url, ca_file=layout.ca) as client:
        joined = client.join(request)
    identity = Identity(id=joined.id, name=joined.node)
    write_whole(layout.identity, identity.json_bytes() + b"\n", 0o644)
    # last: who has a certificate has joined
    _keep(layout, joined)
    return identity


def renew(layout: Layout, client: Client) -> datetime:
    """A certificate for the same key; whoever makes the next connection uses it. Gives its end.

    While the present one is young the controller gives it again.
    """
    joined = client.renew(signing_request(layout, layout.load_identity().name))
    _keep(layout, joined)
    return life(layout.certificate)[1]


def _keep(layout: Layout, joined: Joined) -> None:
    certificate = x509.load_pem_x509_certificate(joined.certificate.encode())
    mine = _key(layout.key).public_key()
    if certificate.public_key() != mine:
        raise AgentError(f"certificate of {joined.node}: for another key, expected one for {layout.key}")
    write_whole(layout.ca, joined.ca.encode())
    write_whole(layout.certificate, joined.certificate.encode())


def exposed(path: Path) -> bool:
    """Whether others may read the file."""
    return bool(path.stat().st_mode & 0o077)

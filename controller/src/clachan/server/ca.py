"""The controller's certificate authority: HOME/controller/ca/{ca.crt,ca.key,server.crt,server.key}.

Node certificates have extensions of our choice only; of a node's request nothing is taken but its public key. A
certificate is known by the sha256 of its DER form, which is also what the TLS layer hands over of a peer.
"""

import hashlib
import ipaddress
import os
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS = 3650
LEEWAY = timedelta(minutes=10)
"""Certificates begin a little in the past: nodes' clocks differ."""


class RequestError(ValueError):
    """A certificate request that cannot be signed; the message says why."""


@dataclass(frozen=True)
class Issued:
    """A node's certificate: fingerprint and public key as sha256 hex."""

    pem: str
    fingerprint: str
    key: str
    expires: datetime


class Authority:
    """The CA of one platform, made when its folder has none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / "ca.crt").exists():
            self._create()
        self.certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        self._key = _load_key(folder / "ca.key")

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def fingerprint(self) -> str:
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    def server_certificate(self, names: Iterable[str], days: int) -> tuple[Path, Path]:
        """Certificate and key file of the server; a new certificate when names changed or 2/3 of its life is over."""
        certificate, key_file = self.folder / "server.crt", self.folder / "server.key"
        alternatives = _alternatives(names)
        if not (key_file.exists() and certificate.exists() and self._serves(certificate, alternatives)):
            key = _load_key(key_file) if key_file.exists() else _new_key(key_file)
            builder = self._builder("clachan controller", key.public_key(), timedelta(days=days))
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            write_file(certificate, self._sign(builder).public_bytes(Encoding.PEM), 0o644)
        return certificate, key_file

    def sign_node(self, csr_pem: str, node: str, days: int) -> Issued:
        """A client certificate for the key of a request; subject and extensions are ours.

        Raises RequestError when the request is not one, its signature is wrong or its key is not EC P-256.
        """
        public = request_key(csr_pem)
        builder = self._builder(node, public, timedelta(days=days))
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        certificate = self._sign(builder)
        return Issued(
            pem=certificate.public_bytes(Encoding.PEM).decode(),
            fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
            key=key_digest(public),
            expires=certificate.not_valid_after_utc,
        )

    def _serves(self, path: Path, alternatives: list[x509.GeneralName]) -> bool:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        fresh = datetime.now(UTC) < begin + (end - begin) * 2 / 3
        return fresh and list(names) == alternatives and certificate.issuer == self.certificate.subject

    def _builder(self, name: str, key: ec.EllipticCurvePublicKey, life: timedelta) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            _named(name, self.certificate.subject)
            .public_key(key)
            .not_valid_before(now - LEEWAY)
            .not_valid_after(min(now + life, self.certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(issuer, critical=False)
        )

    def _sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        return builder.sign(self._key, hashes.SHA256())

    def _create(self) -> None:
        key = _new_key(self.folder / "ca.key")
        name = f"Clachan CA {os.urandom(4).hex()}"
        now = datetime.now(UTC)
        subject = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            _named(name, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .public_key(key.public_key())
            .not_valid_before(now - LEEWAY)
            .not_valid_after(now + timedelta(days=CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(subject, critical=False)
            .sign(key, hashes.SHA256())
        )
        # the certificate last: it says that the CA is complete
        write_file(self.folder / "ca.crt", certificate.public_bytes(Encoding.PEM), 0o644)


def request_key(csr_pem: str) -> ec.EllipticCurvePublicKey:
    """The public key of a certificate request; raises RequestError."""
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        valid, key = request.is_signature_valid, request.public_key()
    except Exception as error:  # the parser has many kinds of errors for foreign bytes
        raise RequestError("csr: not a certificate request, expected PEM of one") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RequestError("csr: key of another kind, expected EC P-256")
    if not valid:
        raise RequestError("csr: its signature does not fit its key, expected one signed by its own key")
    return key


def key_digest(key: ec.EllipticCurvePublicKey) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def server_context(certificate: Path, key: Path, ca: Path) -> ssl.SSLContext:
    """TLS of the server: a client certificate is asked for, and verified when given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def _named(name: str, issuer: x509.Name) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return x509.CertificateBuilder(issuer, subject, None, x509.random_serial_number())


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _alternatives(names: Iterable[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"key {path}: {type(key).__name__}, expected EC P-256")
    return key


def _new_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    write_file(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    return key


def write_file(path: Path, content: bytes, mode: int) -> None:
    """Replace a file at once, so that a crash leaves the old one or the new one."""
    partial = path.with_name(path.name + ".new")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)

"""Certificates that are signed by themselves: where nobody gave a service one, and where a group trusts just one.

`say` is the command line of both.
"""

import os
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LIFE = timedelta(days=3650)
RENEWAL = timedelta(days=365)
"""When so little of its life is left, it is made anew."""
Key = ec.EllipticCurvePrivateKey
Extension = tuple[x509.ExtensionType, bool]
"""And whether it is critical."""


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def key_text(key: Key) -> bytes:
    """PEM."""
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(*form)


def signed(key: Key, title: str, extensions: Iterable[Extension]) -> bytes:
    """The certificate of the key, signed by itself; PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, title)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + LIFE)
    both: list[Extension] = [
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), False),
    ]
    for extension, critical in [*extensions, *both]:
        builder = builder.add_extension(extension, critical)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def holds(certificate: bytes, key: bytes) -> x509.Certificate | None:
    """The certificate, when it is the key's and has long to live. Raises ValueError, TypeError for what is neither."""
    found = x509.load_pem_x509_certificate(certificate)
    own = serialization.load_pem_private_key(key, None)
    lasts = found.not_valid_after_utc - datetime.now(UTC) > RENEWAL
    return found if lasts and found.public_key() == own.public_key() else None


def replace(path: Path, content: bytes, mode: int) -> None:
    """Write a file at once and for good."""
    draft = path.with_name(f".{path.name}.tmp")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def say(
    arguments: list[str], words: range, usage: str | None, find: Callable[[list[str], bool], tuple[str, bool]]
) -> int:
    """The command line: `--make` or `--look`, and so many words behind it, which `find` is given, with whether it is
    only to look; it tells the text, and whether that was made now: then standard error says `made`. Exit status: 0, or
    2 for wrong use."""
    if len(arguments) - 1 not in words or arguments[0] not in {"--make", "--look"}:
        print(usage, file=sys.stderr)  # noqa: T201
        return 2
    text, made = find(arguments[1:], arguments[0] == "--look")
    sys.stdout.write(text)
    if made:
        print("made", file=sys.stderr)  # noqa: T201
    return 0

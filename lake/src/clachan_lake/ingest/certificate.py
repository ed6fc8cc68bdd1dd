"""A certificate that a lake signs itself, for TLS where no authority gave it one.

`python -m clachan_lake.ingest.certificate --make CERTIFICATE KEY ADDRESS...` prints the certificate (PEM). It is made
when there is none for these addresses, or less than a year of it is left; then standard error says `made`. With
`--look` instead nothing is made, and nothing printed when it would have to be.
"""

import ipaddress
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFE = timedelta(days=3650)
RENEWAL = timedelta(days=365)


def certificate(path: Path, key_path: Path, addresses: Sequence[str], *, look: bool = False) -> tuple[str, bool]:
    """The certificate as PEM, and whether it was made now; with `look` the text is empty instead. Raises OSError."""
    if text := _present(path, key_path, addresses):
        return text, False
    return ("", False) if look else (_make(path, key_path, addresses), True)


def _present(path: Path, key_path: Path, addresses: Sequence[str]) -> str:
    """The certificate that is there; empty when it is not that of the key and the addresses, or ends soon."""
    try:
        text = path.read_text()
        found = x509.load_pem_x509_certificate(text.encode())
        key = serialization.load_pem_private_key(key_path.read_bytes(), None)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (FileNotFoundError, ValueError, TypeError, x509.ExtensionNotFound):
        return ""
    fits = names == _names(addresses) and found.public_key() == key.public_key()
    return text if fits and found.not_valid_after_utc - datetime.now(UTC) > RENEWAL else ""


def _make(path: Path, key_path: Path, addresses: Sequence[str]) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    text = _signed(key, addresses).public_bytes(serialization.Encoding.PEM).decode()
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    # the key first: killed in between, the pair does not fit and is made again
    _replace(key_path, key.private_bytes(*form), 0o600)
    _replace(path, text.encode(), 0o644)
    return text


def _signed(key: ec.EllipticCurvePrivateKey, addresses: Sequence[str]) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "clachan lake")])
    now = datetime.now(UTC)
    usage = x509.KeyUsage(True, *[False] * 8)  # signatures, as TLS needs them
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + LIFE)
    for extension, critical in (
        (_names(addresses), False),
        (x509.BasicConstraints(False, None), True),
        (usage, True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), False),
    ):
        builder = builder.add_extension(extension, critical)
    return builder.sign(key, hashes.SHA256())


def _names(addresses: Sequence[str]) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = []
    for address in addresses:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        except ValueError:
            names.append(x509.DNSName(address))
    return x509.SubjectAlternativeName(names)


def _replace(path: Path, content: bytes, mode: int) -> None:
    draft = path.with_name(f".{path.name}.tmp")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def main(arguments: list[str]) -> int:
    """Exit status: 0, or 2 for wrong use."""
    if len(arguments) < 4 or arguments[0] not in {"--make", "--look"}:
        print(__doc__, file=sys.stderr)  # noqa: T201
        return 2
    what, path, key_path, *addresses = arguments
    text, made = certificate(Path(path), Path(key_path), addresses, look=what == "--look")
    sys.stdout.write(text)
    if made:
        print("made", file=sys.stderr)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

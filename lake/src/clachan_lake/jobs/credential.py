"""The credential of a Dask cluster: one key and certificate, which all its processes and clients have and trust.

`python -m clachan_lake.jobs.credential --make FILE` prints it (PEM, key and certificate). It is made when there is none
or less than a year of it is left; then standard error says `made`. With `--look` nothing is made, and nothing printed
when it would have to be. Who has it may have the cluster call any function: it is secret.
"""

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFE = timedelta(days=3650)
RENEWAL = timedelta(days=365)


def credential(file: Path, *, look: bool = False) -> tuple[str, bool]:
    """The PEM text, and whether it was made now; with `look` the text is empty instead. Raises OSError."""
    if text := _present(file):
        return text, False
    return ("", False) if look else (_make(file), True)


def _present(file: Path) -> str:
    """What is there; empty when it is not whole, or ends soon."""
    try:
        data = file.read_bytes()
        found = x509.load_pem_x509_certificate(data)
        key = serialization.load_pem_private_key(data, None)
    except (FileNotFoundError, ValueError, TypeError):
        return ""
    fits = found.public_key() == key.public_key() and found.not_valid_after_utc - datetime.now(UTC) > RENEWAL
    return data.decode() if fits else ""


def _make(file: Path) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    data = key.private_bytes(*form) + _signed(key).public_bytes(serialization.Encoding.PEM)
    draft = file.with_name(f".{file.name}.tmp")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)
    return data.decode()


def _signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "clachan dask")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + LIFE)
    both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    for extension, critical in (
        (x509.BasicConstraints(True, 0), True),
        (x509.KeyUsage(True, False, False, False, False, True, False, False, False), True),
        (both, False),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), False),
    ):
        builder = builder.add_extension(extension, critical)
    return builder.sign(key, hashes.SHA256())


def main(arguments: list[str]) -> int:
    """Exit status: 0, or 2 for wrong use."""
    if len(arguments) != 2 or arguments[0] not in {"--make", "--look"}:
        print(__doc__, file=sys.stderr)  # noqa: T201
        return 2
    text, made = credential(Path(arguments[1]), look=arguments[0] == "--look")
    sys.stdout.write(text)
    if made:
        print("made", file=sys.stderr)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A certificate that a lake signs itself, for TLS where no authority gave it one.

`python -m clachan_lake.ingest.certificate --make CERTIFICATE KEY ADDRESS...` prints the certificate (PEM). It is made
when there is none for these addresses, or less than a year of it is left; then standard error says `made`. With
`--look` instead nothing is made, and nothing printed when it would have to be.
"""

import ipaddress
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from clachan_lake import signing


def certificate(path: Path, key_path: Path, addresses: Sequence[str], *, look: bool = False) -> tuple[str, bool]:
    """The certificate as PEM, and whether it was made now; with `look` the text is empty instead. Raises OSError."""
    if text := _present(path, key_path, addresses):
        return text, False
    return ("", False) if look else (_make(path, key_path, addresses), True)


def _present(path: Path, key_path: Path, addresses: Sequence[str]) -> str:
    """The certificate that is there; empty when it is not that of the key and the addresses, or ends soon."""
    try:
        text = path.read_bytes()
        found = signing.holds(text, key_path.read_bytes())
        names = found and found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (FileNotFoundError, ValueError, TypeError, x509.ExtensionNotFound):
        return ""
    return text.decode() if names == _names(addresses) else ""


def _make(path: Path, key_path: Path, addresses: Sequence[str]) -> str:
    key = signing.new_key()
    text = signing.signed(
        key,
        "clachan lake",
        [
            (_names(addresses), False),
            (x509.BasicConstraints(False, None), True),
            (x509.KeyUsage(True, *[False] * 8), True),  # signatures, as TLS needs them
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        ],
    )
    # the key first: killed in between, the pair does not fit and is made again
    signing.replace(key_path, signing.key_text(key), 0o600)
    signing.replace(path, text, 0o644)
    return text.decode()


def _names(addresses: Sequence[str]) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = []
    for address in addresses:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        except ValueError:
            names.append(x509.DNSName(address))
    return x509.SubjectAlternativeName(names)


def _find(words: list[str], look: bool) -> tuple[str, bool]:
    path, key_path, *addresses = words
    return certificate(Path(path), Path(key_path), addresses, look=look)


if __name__ == "__main__":
    sys.exit(signing.say(sys.argv[1:], range(3, 100), __doc__, _find))

"""The credential of a Dask cluster: one key and certificate, which all its processes and clients have and trust.

`python -m clachan_lake.jobs.credential --make FILE` prints it (PEM, key and certificate). It is made when there is none
or less than a year of it is left; then standard error says `made`. With `--look` nothing is made, and nothing printed
when it would have to be. Who has it may have the cluster call any function: it is secret.
"""

import sys
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from clachan_lake import signing


def credential(file: Path, *, look: bool = False) -> tuple[str, bool]:
    """The PEM text, and whether it was made now; with `look` the text is empty instead. Raises OSError."""
    if text := _present(file):
        return text, False
    return ("", False) if look else (_make(file), True)


def _present(file: Path) -> str:
    """What is there; empty when it is not whole, or ends soon."""
    try:
        data = file.read_bytes()
        return data.decode() if signing.holds(data, data) else ""
    except (FileNotFoundError, ValueError, TypeError):
        return ""


def _make(file: Path) -> str:
    key = signing.new_key()
    certificate = signing.signed(
        key,
        "clachan dask",
        [
            (x509.BasicConstraints(True, 0), True),
            (x509.KeyUsage(True, False, False, False, False, True, False, False, False), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), False),
        ],
    )
    data = signing.key_text(key) + certificate
    signing.replace(file, data, 0o600)
    return data.decode()


def main(arguments: list[str]) -> int:
    """Exit status: 0, or 2 for wrong use."""
    return signing.say(arguments, range(1, 2), __doc__, lambda words, look: credential(Path(words[0]), look=look))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

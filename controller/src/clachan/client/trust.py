"""Whether a controller is the right one: by its CA. It stands on the standard library alone, as `streams` does."""

import hashlib
import ssl

from clachan.client.errors import BadAnswerError, ClientError, UntrustedError
from clachan.client.streams import Streams

FINGERPRINT_CHARS = 32


def fetch_ca(url: str) -> tuple[str, str]:
    """The controller's CA (PEM) and its sha256 fingerprint (hex), over a connection that proves nothing.

    Whoever answers may lie: compare the fingerprint with one that came another way before trusting the CA.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        pem = Streams(url, context=context).text("/ca")
        return pem, hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    except ValueError as error:
        raise BadAnswerError(f"answer to GET /ca of {url}: no certificate, expected a Clachan controller") from error


def trusted_ca(url: str, join_token: str) -> str:
    """The controller's CA (PEM), trusted as its fingerprint is the one in the join token; else UntrustedError."""
    expected, _, secret = join_token.partition(".")
    if len(expected) != FINGERPRINT_CHARS or not secret:
        raise ClientError("join token: not of the form, expected 32 hex digits, a dot and a secret")
    pem, fingerprint = fetch_ca(url)
    if not fingerprint.startswith(expected.lower()):
        raise UntrustedError(f"CA of {url}: fingerprint {fingerprint}, expected one that begins with {expected}")
    return pem

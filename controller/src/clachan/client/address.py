"""Where a controller is. It stands on the standard library alone, as `streams` does."""

import ipaddress
from pathlib import Path
from urllib.parse import urlsplit

from clachan.client.errors import ClientError, UntrustedError


def controller_address(url: str, ca_file: Path | str | None) -> tuple[str, str, int]:
    """`https://HOST[:PORT]` alone, the host and the port of a controller's URL.

    Raises ClientError for a URL of another form, UntrustedError when the CA's file is missing.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise ClientError(f"controller url: {url!r}, expected https://HOST[:PORT]")
    if ca_file is not None and not Path(ca_file).is_file():
        raise UntrustedError(f"CA file: {ca_file} does not exist, expected the PEM file of the controller's CA")
    return f"https://{parts.netloc}", parts.hostname, parts.port or 443


def is_loopback(host: str) -> bool:
    """No proxy leads there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

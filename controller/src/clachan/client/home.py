"""CLACHAN_HOME, the one directory of a platform on this machine, and the credentials in it."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from clachan.client.errors import NoCredentialsError

CREDENTIALS = "credentials.json"
_FIELDS = frozenset({"url", "token", "ca_file"})


def home() -> Path:
    """CLACHAN_HOME if set; else /var/lib/clachan for root; else `clachan` in the user's data directory."""
    if chosen := os.environ.get("CLACHAN_HOME"):
        return Path(chosen).expanduser().absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/clachan")
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "clachan"


@dataclass(frozen=True)
class Credentials:
    """Which controller, with which token, trusting which CA (None: the system's)."""

    url: str
    token: str | None
    ca_file: Path | None

    def __repr__(self) -> str:
        return f"Credentials(url={self.url!r}, ca_file={self.ca_file!r})"

    def save(self, directory: Path) -> Path:
        """Write `directory`/credentials.json, readable only by its owner, replacing it in one step."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / CREDENTIALS
        fresh = directory / f".{CREDENTIALS}.{os.getpid()}"
        fresh.unlink(missing_ok=True)
        text = json.dumps(
            {"url": self.url, "token": self.token, "ca_file": str(self.ca_file) if self.ca_file else None}
        )
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text + "\n")
        fresh.rename(path)
        return path


def load_credentials(directory: Path | None = None) -> Credentials:
    """CLACHAN_URL, CLACHAN_TOKEN and CLACHAN_CA, each over what credentials.json in `directory` (default: home) says.

    The file's token is for the file's controller: it is not sent to another one that CLACHAN_URL names.
    Raises NoCredentialsError when no controller is known or the file cannot be read.
    """
    directory = directory or home()
    stored = _stored(directory / CREDENTIALS)
    url, token, ca_file = (os.environ.get(f"CLACHAN_{key}") for key in ("URL", "TOKEN", "CA"))
    if url and (stored is None or urlsplit(url).netloc != urlsplit(stored.url).netloc):
        return Credentials(url, token, Path(ca_file) if ca_file else None)
    if stored is None:
        raise NoCredentialsError(
            f"credentials: {directory / CREDENTIALS} does not exist, expected it from 'clachan login' or 'clachan up', "
            "or CLACHAN_URL and CLACHAN_TOKEN in the environment"
        )
    return Credentials(url or stored.url, token or stored.token, Path(ca_file) if ca_file else stored.ca_file)


def _stored(path: Path) -> Credentials | None:
    """The file's content: an object with the texts `url`, and perhaps `token` and `ca_file` (relative to the file)."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise NoCredentialsError(
            f"credentials {path}: {error.strerror}, expected a file that this user can read"
        ) from error
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("url"), str) or not _well_formed(found):
        # what was found is not quoted: it may hold a token
        raise NoCredentialsError(f"credentials {path}: damaged, expected JSON with url, token and ca_file")
    token, ca_file = found.get("token"), found.get("ca_file")
    return Credentials(found["url"], token, path.parent / ca_file if ca_file else None)


def _well_formed(found: dict[str, object]) -> bool:
    return found.keys() <= _FIELDS and all(isinstance(value, str | None) for value in found.values())

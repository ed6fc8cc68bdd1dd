"""Secrets come from a file, a hidden prompt or standard input: what stands in argv is seen by everybody."""

import sys
from pathlib import Path

from clachan.cli.errors import WRONG_USE, CommandError

SECRET_BYTES = 64 * 1024


def read_secret(what: str, file: Path | None) -> str:
    """One line: of `file`, else asked for on a terminal, else from standard input."""
    if file is not None and str(file) != "-":
        secret = read_text(file)
    elif sys.stdin.isatty():
        from getpass import getpass

        secret = getpass(f"{what}: ")
    else:
        secret = sys.stdin.read(SECRET_BYTES)
    secret = secret.strip()
    if not secret or not secret.isprintable() or " " in secret:
        raise CommandError(f"{what}: empty or not one word, expected the {what} as it was given", WRONG_USE)
    return secret


def read_text(file: Path) -> str:
    """The file's text (`-`: standard input) without the newline at its end."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as error:
        raise CommandError(f"file {file}: {error.strerror}, expected one that can be read", WRONG_USE) from error
    except UnicodeDecodeError as error:
        raise CommandError(f"file {file}: not UTF-8 text, expected text", WRONG_USE) from error
    return text.removesuffix("\n")

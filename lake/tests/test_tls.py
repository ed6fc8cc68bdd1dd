"""TLS of the lake's service: a certificate of its own making, and everybody who reads or sends over it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import requests
from clachan_lake import signing
from clachan_lake.errors import RemoteError
from clachan_lake.ingest import certificate
from clachan_lake.ingest.config import load
from clachan_lake.opening import open_lake
from cryptography import x509

from .making import TOKEN, Server, wait_for
from .test_cli import cli
from .test_forward import Forwarder, arrived

MAKE = [sys.executable, "-I", "-m", "clachan_lake.ingest.certificate"]


class TlsServer(Server):
    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca(self) -> Path:
        return self.directory / "cert.pem"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    directory = tmp_path_factory.mktemp("tls")
    pair = {"certificate": directory / "cert.pem", "key": directory / "key.pem"}
    certificate.certificate(*pair.values(), ["127.0.0.1", "localhost"])
    running = TlsServer(directory, **{key: str(path) for key, path in pair.items()})
    running.session.verify = str(running.ca)
    running.start()
    yield running
    running.close()


def test_it_is_made_once_and_for_its_addresses(tmp_path: Path) -> None:
    paths = tmp_path / "cert.pem", tmp_path / "key.pem"
    assert certificate.certificate(*paths, ["10.1.2.3"], look=True) == ("", False)
    assert list(tmp_path.iterdir()) == []
    text, made = certificate.certificate(*paths, ["10.1.2.3", "::1", "lake.example"])
    assert (made, paths[0].read_text(), oct(paths[1].stat().st_mode & 0o777)) == (True, text, "0o600")
    assert certificate.certificate(*paths, ["10.1.2.3", "::1", "lake.example"]) == (text, False)
    found = x509.load_pem_x509_certificate(text.encode())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name) for name in names.get_values_for_type(x509.IPAddress)] == ["10.1.2.3", "::1"]
    assert names.get_values_for_type(x509.DNSName) == ["lake.example"]
    assert found.not_valid_after_utc > datetime.now(UTC) + timedelta(days=3600)
    other, made = certificate.certificate(*paths, ["10.1.2.4"])
    assert made
    assert other != text


@pytest.mark.parametrize("damage", ["certificate", "key", "other key", "gone", "late"])
def test_what_does_not_fit_is_made_again(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    if damage == "late":
        monkeypatch.setattr(signing, "LIFE", timedelta(days=360))
    text, _ = certificate.certificate(path, key, ["::1"])
    monkeypatch.undo()
    if damage == "certificate":
        path.write_text("no certificate")
    elif damage == "key":
        key.write_text("no key")
    elif damage == "other key":
        certificate.certificate(tmp_path / "c", key, ["::1"])
    elif damage == "gone":
        key.unlink()
    again, made = certificate.certificate(path, key, ["::1"])
    assert made
    assert again != text
    assert certificate.certificate(path, key, ["::1"]) == (again, False)


def test_as_a_command(tmp_path: Path) -> None:
    words = [str(tmp_path / "c"), str(tmp_path / "k"), "::1"]
    runs = [
        subprocess.run([*MAKE, *more, *words], capture_output=True, text=True, check=True)
        for more in (["--look"], ["--make"], ["--make"], ["--look"])
    ]
    text = (tmp_path / "c").read_text()
    assert [one.stdout for one in runs] == ["", text, text, text]
    assert [one.stderr for one in runs] == ["", "made\n", "", ""]
    wrong = subprocess.run([*MAKE, "--make", "c", "k"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, "CERTIFICATE KEY ADDRESS" in wrong.stderr) == (2, True)


def test_only_with_it_the_lake_is_read(server: TlsServer, tmp_path: Path) -> None:
    assert json.loads((server.directory / "address").read_text())["url"] == server.url
    with open_lake(server.url, token=TOKEN, ca=server.ca) as lake:
        made = lake.arrays.create("noise", 3, "i2")
        made.append(np.array([1, 2], "i2"))
        assert lake.arrays["noise"][:].tolist() == [0, 0, 0, 1, 2]
        # its own session, in a thread of its own
        assert [rows.tolist() for _, rows in lake.arrays["noise"].blocks(6)] == [[0, 0, 0], [1, 2]]
    with open_lake(server.url, token=TOKEN) as lake, pytest.raises(RemoteError, match="CERTIFICATE_VERIFY_FAILED"):
        list(lake.arrays)
    certificate.certificate(tmp_path / "other", tmp_path / "key", ["127.0.0.1"])
    with open_lake(server.url, token=TOKEN, ca=tmp_path / "other") as lake, pytest.raises(RemoteError):
        list(lake.arrays)
    with pytest.raises(FileNotFoundError, match="expected the certificate of the lake or its authority"):
        open_lake(server.url, token=TOKEN, ca=tmp_path / "none")
    plain = requests.Session()
    plain.trust_env = False
    with pytest.raises(requests.RequestException):
        plain.get(server.url.replace("https", "http") + "/healthz", timeout=5)
    plain.close()


def test_by_name_and_by_command(server: TlsServer, tmp_path: Path) -> None:
    file = tmp_path / "sent"
    file.write_bytes(b"sent over TLS")
    reach = ["--token-file", server.token_file, "--ca-file", server.ca]
    assert cli("ingest", server.url, file, *reach) == "sent: 13 bytes\n"
    named = server.url.replace("127.0.0.1", "localhost")
    cli("export", named, "sent", tmp_path / "back", *reach)
    assert (tmp_path / "back").read_bytes() == b"sent over TLS"
    variables = {"CLACHAN_LAKE_CA_FILE": str(server.ca), "CLACHAN_LAKE_TOKEN_FILE": str(server.token_file)}
    assert json.loads(cli("show", named, "sent", "--json", **variables))["stream"]["size"] == 13
    said = cli("list", server.url, "--token-file", server.token_file, status=1)
    assert "CERTIFICATE_VERIFY_FAILED" in said


@pytest.mark.slow
def test_the_forwarder_ships_over_it(server: TlsServer, tmp_path: Path) -> None:
    forwarder = Forwarder(tmp_path, server)
    try:
        forwarder.write("secret.log", b"line\n" * 500)
        forwarder.start()
        wait_for(lambda: forwarder.status_file.exists() and forwarder.status()["last_error"], "error")
        assert "CERTIFICATE_VERIFY_FAILED" in forwarder.status()["last_error"]
        forwarder.stop()
        forwarder.config["ca_file"] = str(server.ca)
        forwarder.start()
        arrived(server, "secret.log", b"line\n" * 500)
    finally:
        forwarder.stop()


def test_files_that_are_no_pair_are_named(tmp_path: Path, server: TlsServer) -> None:
    certificate.certificate(tmp_path / "cert", tmp_path / "key", ["::1"])
    config = json.loads((server.directory / "serve.json").read_text())
    for more, message in [
        (
            {"certificate": str(tmp_path / "cert"), "key": None},
            "key key: missing, expected certificate and key, or neither",
        ),
        ({"certificate": str(tmp_path / "cert")}, "expected PEM files that belong together"),
        ({"key": str(tmp_path / "none")}, "No such file or directory, expected PEM files"),
    ]:
        path = tmp_path / "serve.json"
        path.write_text(json.dumps({key: value for key, value in (config | more).items() if value is not None}))
        with pytest.raises(ValueError, match=message):
            load(path)
    command = [sys.executable, "-I", "-m", "clachan_lake.serve", str(tmp_path / "serve.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "expected PEM files that belong together" in done.stderr) == (2, True)

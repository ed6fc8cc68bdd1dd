"""The node's key and certificate."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from clachan.agent import certificate
from clachan.agent.layout import AgentError, Layout
from clachan.agent.settings import Identity
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "node").mkdir()
    return Layout(tmp_path)


def issue(csr: str, days: int = 30) -> str:
    """A certificate as a CA gives it."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.load_pem_x509_csr(csr.encode())
    builder = x509.CertificateBuilder().subject_name(request.subject).issuer_name(request.subject)
    builder = builder.public_key(request.public_key()).serial_number(1)
    builder = builder.not_valid_before(BEGIN).not_valid_after(BEGIN + timedelta(days=days))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def test_the_key_is_made_once_and_private(layout: Layout) -> None:
    first = x509.load_pem_x509_csr(certificate.signing_request(layout, "here").encode())
    again = x509.load_pem_x509_csr(certificate.signing_request(layout, "here").encode())
    assert first.public_key() == again.public_key()
    assert isinstance(first.public_key(), ec.EllipticCurvePublicKey)
    assert first.is_signature_valid
    assert [one.value for one in first.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["here"]
    assert layout.key.stat().st_mode & 0o777 == 0o600


def test_it_is_renewed_at_two_thirds_of_its_life(layout: Layout) -> None:
    layout.certificate.write_text(issue(certificate.signing_request(layout, "here")))
    assert not certificate.renewal_due(layout.certificate, BEGIN + timedelta(days=19))
    assert certificate.renewal_due(layout.certificate, BEGIN + timedelta(days=20))
    assert certificate.renewal_due(layout.certificate, BEGIN + timedelta(days=31))


def test_a_certificate_for_another_key_is_not_kept(layout: Layout, tmp_path: Path) -> None:
    mine = issue(certificate.signing_request(layout, "here"))
    layout.certificate.write_text(mine)
    (tmp_path / "other/node").mkdir(parents=True)
    other = issue(certificate.signing_request(Layout(tmp_path / "other"), "here"))
    with pytest.raises(AgentError, match=r"certificate of here: for another key, expected one for .*key\.pem"):
        certificate._keep(layout, "here", other, "x")
    assert layout.certificate.read_text() == mine


def test_a_node_does_not_become_another(layout: Layout) -> None:
    layout.identity.write_bytes(Identity(id="1", name="here").json_bytes())
    with pytest.raises(AgentError, match="node there: this machine is the node here, expected one that has not joined"):
        certificate.join(layout, "https://127.0.0.1:9", "there", "x" * 32 + ".y")

"""Join tokens, certificates, renewal, revocation."""

import threading
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from live import Caller, Live, Node, key_and_csr


def join(live: Live, token: str, name: str, csr: str) -> tuple[int, dict[str, str]]:
    response = Caller(live.url, live.ca_file).call("POST", "/join", {"token": token, "node": name, "csr": csr})
    document = response.json()
    return response.status_code, document if response.ok else document["error"]


def test_joining_again_with_the_same_key_gives_the_same_certificate(shared: Live) -> None:
    token, (_, csr) = shared.join_token("again"), key_and_csr("again")
    first, second = join(shared, token, "again", csr), join(shared, token, "again", csr)
    assert first == second
    assert first[0] == 200
    status, error = join(shared, token, "again", key_and_csr("again")[1])
    assert (status, error["message"]) == (409, "join token: used with another key, expected a new token")


def test_a_token_is_for_one_name_and_one_time(shared: Live) -> None:
    token, (_, csr) = shared.join_token("right"), key_and_csr("right")
    status, error = join(shared, token, "wrong", csr)
    assert status == 403
    assert error["message"] == "join token: not for node wrong, expected the name that it was made for"
    status, error = join(shared, token[:-1], "right", csr)
    assert (status, error["message"]) == (401, "join token: unknown, expected one that is valid")
    made = shared.ok("POST", "/join-tokens", {"node": "gone"})
    shared.ok("DELETE", f"/join-tokens/{made['id']}")
    assert join(shared, made["token"], "gone", csr)[0] == 401


def test_an_expired_token_is_refused(shared: Live) -> None:
    made = shared.ok("POST", "/join-tokens", {"node": "late", "seconds": 60})
    with shared.controller.database.write() as session:
        from clachan.server.db.models import JoinToken

        session.get(JoinToken, made["id"]).expires = "2026-01-01T00:00:00.000Z"
    status, error = join(shared, made["token"], "late", key_and_csr("late")[1])
    assert status == 401
    assert error["message"] == "join token: expired at 2026-01-01T00:00:00.000Z, expected a fresh one"


def test_the_token_carries_the_fingerprint_of_the_ca(shared: Live) -> None:
    pem = Caller(shared.url, shared.ca_file).call("GET", "/ca").content
    fingerprint = x509.load_pem_x509_certificate(pem).fingerprint(hashes.SHA256()).hex()
    assert shared.join_token("any").split(".")[0] == fingerprint[:32]


@pytest.mark.parametrize("name", ["all", "self", "localhost", "nodes", "instances"])
def test_names_that_ansible_or_a_route_has_are_refused(shared: Live, name: str) -> None:
    assert shared.call("POST", "/join-tokens", {"node": name}).status_code == 422


def test_only_the_key_of_a_request_is_taken(shared: Live) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, "root"), x509.NameAttribute(NameOID.COUNTRY_NAME, "FR")]
    )
    csr = (
        x509.CertificateSigningRequestBuilder(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("controller")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = csr.public_bytes(serialization.Encoding.PEM).decode()
    status, joined = join(shared, shared.join_token("modest"), "modest", pem)
    assert status == 200
    certificate = x509.load_pem_x509_certificate(joined["certificate"].encode())
    assert [part.value for part in certificate.subject] == ["modest"]
    assert certificate.public_key() == key.public_key()
    extensions = {extension.oid.dotted_string for extension in certificate.extensions}
    assert x509.SubjectAlternativeName.oid.dotted_string not in extensions
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert 89 <= (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days <= 90


def test_requests_with_other_keys_or_no_sense_are_refused(shared: Live) -> None:
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "odd")])
    csr = x509.CertificateSigningRequestBuilder(name).sign(key, hashes.SHA256())
    pem = csr.public_bytes(serialization.Encoding.PEM).decode()
    status, error = join(shared, shared.join_token("odd"), "odd", pem)
    assert (status, error["message"]) == (422, "csr: key of another kind, expected EC P-256")
    status, error = join(shared, shared.join_token("odd"), "odd", "nonsense")
    assert (status, error["message"]) == (422, "csr: not a certificate request, expected PEM of one")


def test_a_node_renews_its_certificate(shared: Live) -> None:
    node = shared.join("fresh")
    _, csr = key_and_csr("anything")
    first = node.ok("POST", "/nodes/self/certificate", {"csr": csr})
    assert node.ok("POST", "/nodes/self/certificate", {"csr": csr}) == first
    assert first["id"] == node.id
    assert x509.load_pem_x509_certificate(first["certificate"].encode()).subject.rfc4514_string() == "CN=fresh"
    node.slice()


def test_revocation_is_at_once_on_kept_connections_and_in_polls(shared: Live) -> None:
    node = shared.join("doomed")
    etag = node.call("GET", "/nodes/self/inventory").headers["etag"]
    waiting = Node(node.url, node.ca_file, cert=node.cert)
    answers: list[int] = []

    def poll() -> None:
        headers = {"if-none-match": etag, "prefer": "wait=30"}
        answers.append(waiting.call("GET", "/nodes/self/inventory", headers=headers).status_code)

    thread = threading.Thread(target=poll)
    thread.start()
    while not shared.controller.hub.waiters(f"node:{node.id}"):
        time.sleep(0.01)
    shared.ok("DELETE", "/nodes/doomed")
    thread.join(5)
    assert answers == [401]
    response = node.call("GET", "/nodes/self/inventory")
    assert response.status_code == 401
    assert response.json()["error"]["message"] == "certificate: unknown or revoked, expected that of a node"
    assert node.call("POST", "/nodes/self/certificate", {"csr": key_and_csr("x")[1]}).status_code == 401
    assert shared.ok("GET", "/nodes/doomed")["state"] == "revoked"


def test_joining_a_known_name_with_a_new_token_ends_the_former_identity(shared: Live) -> None:
    first = shared.join("rebuilt")
    # the second join writes its files over the first's, whose connection is still open
    first.slice()
    second = shared.join("rebuilt")
    assert second.id == first.id
    assert first.call("GET", "/nodes/self/inventory").status_code == 401
    second.slice()


def test_a_certificate_of_another_ca_is_nobody(shared: Live, tmp_path: Path) -> None:
    from clachan.server.ca import Authority

    other = Authority(tmp_path / "other")
    private, csr = key_and_csr("spy")
    (tmp_path / "key.pem").write_bytes(private)
    (tmp_path / "cert.pem").write_text(other.sign_node(csr, "spy", 1).pem)
    spy = Caller(shared.url, shared.ca_file, cert=(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")))
    with pytest.raises(OSError, match=r"unknown ca|decrypt error|bad certificate|reset|EOF|aborted"):
        spy.call("GET", "/nodes/self/inventory")

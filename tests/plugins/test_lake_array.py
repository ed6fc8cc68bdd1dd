"""`lake_array` against a real lake: values, changed, differences, messages; in check mode, really, again."""

import importlib.util
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from clachan_lake.ingest.writing import Declaration

from .conftest import BIN, ROOT, Finished, Lab, run
from .payloads import payloads

Module = Callable[..., dict[str, Any]]
SPEC = importlib.util.spec_from_file_location("lake_making", ROOT / "lake" / "tests" / "making.py")
assert SPEC
assert SPEC.loader
making = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(making)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    running = making.Server(tmp_path_factory.mktemp("lake")).start()
    yield running
    running.close()


def arguments(lake: Any, name: str, **more: Any) -> dict[str, Any]:
    return {"url": lake.url, "token": making.TOKEN, "name": name, **more}


def found(lake: Any, name: str) -> dict[str, Any] | None:
    answer = lake.get("/arrays/meta", name=name)
    return answer.json() if answer.ok else None


def steps(module: Module, given: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of: check mode, for real, for real again, check mode again; and asserts what changed."""
    results = [module("lake_array", given, check) for check in (True, False, False, True)]
    assert [result.get("changed") for result in results] == [True, True, False, False], results
    assert results[0]["diff"] == results[1]["diff"]
    assert results[2]["diff"]["before"] == results[2]["diff"]["after"] == results[1]["diff"]["after"]
    return results


def test_in_twelve_steps(lake: Any, run_module: Module) -> None:
    name = "hall/microphones"
    first = arguments(lake, name, shape=[0, 2], dtype="int16", units="V", attrs={"rate": 48000})
    assert run_module("lake_array", first, check=True)["changed"] is True
    assert found(lake, name) is None
    made = steps(run_module, first)
    declared = {"name": name, "shape": [0, 2], "dtype": "<i2", "order": "C", "attrs": {"rate": 48000, "units": "V"}}
    assert made[1]["diff"] == {"before": {}, "after": declared}
    assert made[1]["array"] == declared | {"bytes": 0}

    second = arguments(lake, name, attrs={"rate": 8000, "names": ["l", {"r": None}]})
    changed = steps(run_module, second)
    attrs = {"rate": 8000, "names": ["l", {"r": None}], "units": "V"}
    assert changed[1]["diff"] == {"before": declared, "after": declared | {"attrs": attrs}}
    assert found(lake, name)["attrs"] == changed[1]["array"]["attrs"] == attrs  # type: ignore[index]

    gone = steps(run_module, arguments(lake, name, state="absent"))
    assert gone[1]["diff"] == {"before": declared | {"attrs": attrs}, "after": {}}
    assert gone[1]["array"] == {}
    assert found(lake, name) is None


def test_rows_are_data(lake: Any, run_module: Module) -> None:
    """Who appended does not make it differ, and nothing of it is lost."""
    given = arguments(lake, "rows", shape=[0, 2], dtype="<i2", order="C", attrs={"rate": 1})
    run_module("lake_array", given)
    lake.session.post(f"{lake.url}/arrays/data?name=rows&rows=2", data=b"12345678", timeout=9)
    again = run_module("lake_array", given)
    assert (again["changed"], again["array"]["shape"]) == (False, [2, 2])
    changed = run_module("lake_array", given | {"attrs": {"rate": 2}})
    assert (changed["changed"], changed["diff"]["before"]["shape"]) == (True, [2, 2])
    assert lake.get("/arrays/data", name="rows").content == b"12345678"


@pytest.mark.parametrize(
    ("more", "message", "field"),
    [
        ({"dtype": "int32"}, """array 'other', dtype: "int32", expected "<i2" as it has (an array is never""", "dtype"),
        ({"shape": [0, 3]}, "array 'other', shape: [0, 3], expected [0, 2] as it has", "shape"),
        ({"shape": [0]}, "array 'other', shape: [0], expected [0, 2] as it has", "shape"),
        ({"order": "F"}, """array 'other', order: "F", expected "C" as it has""", "order"),
    ],
)
def test_another_array_fails_and_stays(
    lake: Any, run_module: Module, more: dict[str, Any], message: str, field: str
) -> None:
    given = arguments(lake, "other", shape=[0, 2], dtype="int16")
    run_module("lake_array", given)
    for check in (True, False):
        done = run_module("lake_array", given | more | {"attrs": {"x": 1}}, check)
        assert done["msg"].startswith(message)
        assert (done["status"], done["code"], done["field"]) == (409, "conflict", field)
    assert found(lake, "other")["attrs"] == {}  # type: ignore[index]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"dtype": "i2"}, "array 'wrong', shape: missing, expected one: there is no such array"),
        ({"shape": [3]}, "array 'wrong', dtype: missing, expected one: there is no such array"),
        ({"shape": [3], "dtype": "nope"}, "array 'wrong', dtype: 'nope', expected one of numpy's"),
        (
            {"shape": [3], "dtype": "O"},
            "array 'wrong', dtype: 'O', expected one of numpy's, of a fixed size and without",
        ),
        ({"shape": [-3], "dtype": "i2"}, "array wrong, shape and dtype: (-3,) of int16, expected"),
        ({"shape": ["x"], "dtype": "i2"}, "Elements value for option 'shape' is of type"),
        ({"order": "A"}, "value of order must be one of: C, F, got: A"),
        ({"token": "wrong-wrong"}, "credentials: none or wrong, expected the lake's token"),
        ({"url": "lake.example"}, "lake's url: 'lake.example', expected http://HOST:PORT or https://HOST:PORT"),
        ({"url": "http://127.0.0.1:1"}, "lake http://127.0.0.1:1: no answer ("),
        (
            {"url": "https://127.0.0.1:1", "ca": "/nowhere/ca.pem"},
            "CA file /nowhere/ca.pem: not found, expected the lake's",
        ),
    ],
)
def test_what_is_wrong_is_named(lake: Any, run_module: Module, more: dict[str, Any], message: str) -> None:
    for check in (True, False):
        done = run_module("lake_array", arguments(lake, "wrong") | more, check)
        assert message in done["msg"]
        assert making.TOKEN not in json.dumps(done)
    assert found(lake, "wrong") is None


def test_fields_and_columns(lake: Any, run_module: Module) -> None:
    fields = [["t", "<i8"], ["v", "float32", [3]]]
    made = steps(run_module, arguments(lake, "fields", shape=[2, 0], dtype=fields, order="F"))
    assert made[1]["array"]["dtype"] == [["t", "<i8"], ["v", "<f4", [3]]]
    assert made[1]["array"]["order"] == "F"
    assert run_module("lake_array", arguments(lake, "fields", shape=[2, 7], dtype=fields))["changed"] is False
    assert run_module("lake_array", arguments(lake, "fields", shape=[3, 0]))["status"] == 409


def test_types_of_values_are_kept_apart(lake: Any, run_module: Module) -> None:
    for value in (1, 1.5, True, "1", None, [], {}, [1, "1"]):
        done = run_module("lake_array", arguments(lake, "types", shape=[1], dtype="i2", attrs={"x": value}))
        assert done["changed"] is True
        assert found(lake, "types")["attrs"] == {"x": value}  # type: ignore[index]


def test_payloads_come_back_byte_for_byte(lake: Any, run_module: Module, tmp_path: Path) -> None:
    for name, text in payloads(tmp_path / "canary").items():
        given = arguments(lake, f"payload {name}", shape=[1], dtype="i2", units=text, attrs={text: [text]})
        assert run_module("lake_array", given)["array"]["attrs"] == {text: [text], "units": text}
        assert run_module("lake_array", given)["changed"] is False
    assert not (tmp_path / "canary").exists()


def check_documentation(module: Any) -> None:
    """The module's documentation has its options as they are."""
    from ansible_collections.clachan.platform.plugins.doc_fragments.lake import ModuleDocFragment

    documented = yaml.safe_load(module.DOCUMENTATION)
    assert documented["extends_documentation_fragment"] == ["clachan.platform.attributes", "clachan.platform.lake"]
    said = documented["options"] | yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"]
    _compare(said, module.OPTIONS)


def _compare(said: dict[str, Any], options: dict[str, Any]) -> None:
    assert set(said) == set(options)
    for key, option in options.items():
        for word in ("type", "default", "choices", "elements"):
            assert said[key].get(word) == option.get(word), key
        assert said[key].get("required", False) == option.get("required", False), key
        assert said[key]["description"], key
        _compare(said[key].get("suboptions", {}), option.get("options", {}))


def test_documentation_and_the_service_say_the_same() -> None:
    from ansible_collections.clachan.platform.plugins.modules import lake_array

    check_documentation(lake_array)
    declared = set(Declaration.model_fields) - {"remove_attrs", "chunk_bytes"}
    assert declared <= set(lake_array.OPTIONS)
    lake_array_return = yaml.safe_load(lake_array.RETURN)["array"]["contains"]
    assert set(lake_array_return) == {*lake_array.TOLD, "bytes"}


PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - clachan.platform.lake_array:
        url: "{{ url }}"
        token: "{{ lookup('ansible.builtin.env', 'LAKE_TOKEN') }}"
        ca: "{{ ca | default(omit) }}"
        name: played
        shape: [0, 2]
        dtype: int16
        attrs: {rate: 48000}
"""


def play(lab: Lab, *options: str, **variables: str) -> Finished:
    (lab.directory / "play.yml").write_text(PLAY)
    command = [str(BIN / "ansible-playbook"), "-i", "localhost,", "-c", "local", "play.yml", *options]
    variables["ansible_python_interpreter"] = str(BIN / "python")
    command += [word for name, value in variables.items() for word in ("-e", f"{name}={value}")]
    return run(command, lab.directory, lab.environment | {"LAKE_TOKEN": making.TOKEN})


@pytest.mark.slow
def test_in_a_play(lab: Lab, lake: Any) -> None:
    tried = play(lab, "--check", "--diff", url=lake.url)
    assert (tried.status, tried.recap()["localhost"]["changed"]) == (0, 1), tried.all
    assert '+        "rate": 48000' in tried.out
    assert found(lake, "played") is None
    done = [play(lab, "-vvv", url=lake.url) for _ in range(2)]
    assert [one.recap()["localhost"]["changed"] for one in done] == [1, 0], done[0].all
    assert found(lake, "played")["attrs"] == {"rate": 48000}  # type: ignore[index]
    assert making.TOKEN not in tried.all + done[0].all + done[1].all


@contextmanager
def behind_tls(lake: Any, directory: Path) -> Iterator[tuple[str, Path]]:
    """The lake as a reverse proxy shows it: its https URL, and the certificate of its CA."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    request += ["-subj", "/CN=lake", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run([*request, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_serve, args=(listener, context, lake.port), daemon=True).start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}", certificate
        listener.shutdown(socket.SHUT_RDWR)


def _serve(listener: socket.socket, context: ssl.SSLContext, port: int) -> None:
    with suppress(OSError):
        while True:
            plain, _ = listener.accept()
            with suppress(OSError), context.wrap_socket(plain, server_side=True) as client:
                client.settimeout(5)
                _pass(client, port)


def _pass(client: ssl.SSLSocket, port: int) -> None:
    """One request and its answer."""
    data = client.recv(1 << 16)
    while b"\r\n\r\n" not in data:
        data += client.recv(1 << 16)
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
    while len(body) < sum(lengths):
        body += client.recv(1 << 16)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as lake:
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection")]
        lake.sendall(b"\r\n".join([*lines, b"Connection: close", b"", body]))
        while part := lake.recv(1 << 16):
            client.sendall(part)


def test_behind_tls(lake: Any, run_module: Module, tmp_path: Path) -> None:
    with behind_tls(lake, tmp_path) as (url, ca):
        given = arguments(lake, "tls", shape=[1], dtype="i2", url=url)
        refused = run_module("lake_array", given)
        assert refused["msg"].startswith(f"lake {url}: its certificate was refused (")
        assert refused["msg"].endswith("expected one of the CA of the system")
        assert found(lake, "tls") is None
        assert [run_module("lake_array", given | {"ca": str(ca)})["changed"] for _ in range(2)] == [True, False]

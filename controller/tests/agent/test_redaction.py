"""A secret in any form that Ansible prints it in."""

import base64
import json
from urllib.parse import quote

from clachan.agent.redaction import Redactor, sealed_values

SECRET = 'päss"w/ord\n{{ x }}'


def test_every_form_of_a_secret() -> None:
    redactor = Redactor([SECRET])
    for form in (
        SECRET,
        json.dumps(SECRET),
        json.dumps(SECRET, ensure_ascii=False),
        json.dumps({"cmd": json.dumps(SECRET)}),
        repr(SECRET),
        quote(SECRET),
        quote(SECRET, safe=""),
        base64.b64encode(SECRET.encode()).decode(),
    ):
        text = redactor.text(f"before {form} after")
        assert "<secret>" in text
        assert "ord" not in text, form
        assert text.startswith("before ")
        assert text.endswith(" after")


def test_structures_and_nested_secrets() -> None:
    redactor = Redactor([{"user": "admin", "keys": ["key-one", 123456789]}, True, None])
    found = redactor.anything({"key-one": ["x key-one", {"n": "123456789"}], "n": 5, "flag": True})
    assert found == {"<secret>": ["x <secret>", {"n": "<secret>"}], "n": 5, "flag": True}


def test_a_line_of_a_secret_and_one_within_another() -> None:
    redactor = Redactor(["-----BEGIN\nabcdef\n-----END", "abcdefghi"])
    assert redactor.text("x abcdefghi y abcdef z") == "x <secret> y <secret> z"


def test_short_values_do_not_blank_out_texts() -> None:
    assert Redactor(["a", "", 1]).text("banana 1") == "banana 1"


def test_sealed_values() -> None:
    assert sealed_values({"a": "1", "b": "2"}, ["b", "gone"]) == ["2"]

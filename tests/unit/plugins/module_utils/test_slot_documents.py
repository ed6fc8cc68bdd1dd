# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a wrong document is told. That it agrees with the controller's contract is tested where both are at hand."""

from __future__ import annotations

import pytest
from ansible_collections.clachan.platform.plugins.module_utils import slot_documents as docs
from ansible_collections.clachan.platform.plugins.module_utils.slot_files import SlotError


@pytest.mark.parametrize(
    ("what", "given", "check", "message"),
    [
        ("service", {"a": {}}, docs.check_service, "service a: no command, expected a list of 1 to 256 texts"),
        ("service", {"a": []}, docs.check_service, "service a: a list of 0, expected a mapping"),
        (
            "service",
            {"a": {"command": "sleep 1"}},
            docs.check_service,
            "service a: command is a text of 7 characters, expected a list of 1 to 256 texts",
        ),
        (
            "service",
            {"a": {"command": ["x"], "environment": {"A": True}}},
            docs.check_service,
            "service a: environment is a mapping, expected texts by variable name",
        ),
        (
            "service",
            {"a": {"command": ["x"], "directory": "../x"}},
            docs.check_service,
            "service a: directory is a text of 4 characters, expected a path below the slot: relative, "
            "without '.', '..' or empty parts",
        ),
        (
            "service",
            {"a": {"command": ["x"], "stop_seconds": 0}},
            docs.check_service,
            "service a: stop_seconds is 0, expected a whole number from 1 to 600",
        ),
        (
            "service",
            {"a": {"cmd": ["x"]}},
            docs.check_service,
            "service a: unknown 'cmd', expected one of "
            "command, directory, environment, open_files, restart_on, stop_seconds",
        ),
        ("service", {"A": {}}, docs.check_service, "service 'A': expected a name ([a-z][a-z0-9_]{0,30})"),
        (
            "promise",
            {"a": {"kind": "ping"}},
            docs.check_promise,
            "promise a: kind 'ping', expected one of children, command, disk_space, file_age, http, process, tcp",
        ),
        (
            "promise",
            {"a": {"kind": "tcp", "address": "x", "port": "80"}},
            docs.check_promise,
            "promise a: port is a text of 2 characters, expected a whole number from 1 to 65535",
        ),
        (
            "promise",
            {"a": {"kind": "http", "url": "ftp://x"}},
            docs.check_promise,
            "promise a: url is a text of 7 characters, expected a URL (http or https)",
        ),
        (
            "request",
            {"a": {"software": "lake"}},
            docs.check_request,
            "request a: software is a text of 4 characters, expected a software (NAMESPACE.COLLECTION.ROLE)",
        ),
        (
            "request",
            {"a": {"software": "a.b.c", "placement": {"where": "x"}}},
            docs.check_request,
            "request a: placement is a mapping, expected labels, node, spread, inside",
        ),
    ],
)
def test_a_wrong_document_is_named(what, given, check, message):
    with pytest.raises(SlotError) as caught:
        docs.documents(what, given, check)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"Url": 1}, "publish: key 'Url', expected a name ([a-z][a-z0-9_]{0,30})"),
        ({"url": None}, "publish url: null, expected a text, a number or true/false"),
        ({"url": ["x"]}, "publish url: a list of 1, expected a text, a number or true/false"),
        ({"k%d" % number: 1 for number in range(65)}, "publish: expected at most 64 values by name"),
    ],
)
def test_wrong_published_values_are_named(values, message):
    with pytest.raises(SlotError) as caught:
        docs.check_published(values)
    assert str(caught.value) == message


def test_a_document_is_not_too_long():
    with pytest.raises(SlotError, match=r"^service a: \d+ bytes, expected at most 65536$"):
        docs.documents("service", {"a": {"command": ["x" * 8000] * 9}}, docs.check_service)


def test_what_json_cannot_say_is_refused():
    with pytest.raises(SlotError, match=r"^request a: ValueError, expected what JSON can say$"):
        docs.documents("request", {"a": {"software": "a.b.c", "parameters": {"x": float("nan")}}}, docs.check_request)
    with pytest.raises(SlotError, match=r"^publish: UnicodeEncodeError, expected what JSON can say$"):
        docs.encode("publish", {"a": "\ud800"})


def test_numbers_in_commands_become_text():
    assert docs.numbers_as_text({"command": ["a", 1, 1.5, True], "environment": {"A": 2}}) == {
        "command": ["a", "1", "1.5", True],
        "environment": {"A": "2"},
    }

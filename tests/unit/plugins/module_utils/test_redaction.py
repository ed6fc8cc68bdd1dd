# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets and their usual encodings do not stay in a text."""

from __future__ import annotations

import pytest
from ansible_collections.clachan.platform.plugins.module_utils.redaction import Redaction, texts_of


@pytest.mark.parametrize(
    "text",
    [
        'x=S3cr"et/\u00e9',
        'x="S3cr\\"et/\\u00e9"',
        'x="S3cr\\"et/\u00e9"',
        "x=S3cr%22et%2F%C3%A9",
        "x=S3cr%22et/%C3%A9",
        "x=UzNjciJldC/DqQ==",
    ],
)
def test_encodings(text):
    clean = Redaction(['S3cr"et/\u00e9']).text(text)
    assert "<secret>" in clean
    assert "S3cr" not in clean
    assert "UzNj" not in clean


def test_the_longer_secret_goes_first():
    assert Redaction(["abc", "abcdef"]).text("abcdef abc") == "<secret> <secret>"


def test_texts_of_any_value():
    assert texts_of({"a": ["x", 1, None, True, ""], "b": {"c": "y"}}) == ["x", "1", "y"]


def test_nothing_secret_nothing_hidden():
    assert Redaction([]).pair("a\n", "b\n") == ("a\n", "b\n")
    assert Redaction(["s"]).pair("a\n", "b\n") == ("a\n", "b\n")

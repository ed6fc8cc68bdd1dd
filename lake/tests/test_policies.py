"""Policies by themselves: what is wrong with a document is named, a pattern costs no more than its tag is long, and a
tag is never more than text."""

import random
import time
from typing import Any

import pytest
from clachan_lake.access.principal import OWNER
from clachan_lake.errors import MissingError, TakenError, TransactionError
from clachan_lake.ingest.registry import Registry
from clachan_lake.local import LocalLake
from clachan_lake.policies.naming import Template, fill_values
from clachan_lake.policies.pattern import Pattern
from clachan_lake.policies.policy import Policy, read
from clachan_lake.refusal import RefusedError

ARRAY = {"into": "array", "dtype": "<f8"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "policy p: list, expected an object"),
        ({"patern": "x"}, "policy p, key patern: unknown, expected one of title, pattern, into, name, attrs, dtype"),
        ({"pattern": "("}, "policy p, key pattern: '(', expected a regular expression of RE2: missing ): ("),
        ({"pattern": "(?=a)b"}, "policy p, key pattern: '(?=a)b', expected a regular expression of RE2"),
        ({"pattern": r"(a)\1"}, "policy p, key pattern: '(a)\\\\1', expected a regular expression of RE2"),
        ({"pattern": ""}, "policy p, key pattern: '', expected 1-1024 bytes of a regular expression"),
        ({"pattern": "a" * 1025}, "expected 1-1024 bytes of a regular expression"),
        ({"pattern": 7}, "policy p, key pattern: 7, expected a regular expression"),
        ({"pattern": "((a{100}){100}){100}"}, "expected a regular expression of RE2"),
        ({"into": "table"}, "policy p, key into: 'table', expected stream or array"),
        ({"unmatched": "drop"}, "policy p, key unmatched: 'drop', expected refuse or dead"),
        ({"name": "{host}"}, "policy p, key name: '{host}', expected {tag} as its only parts"),
        (
            {"pattern": "(?P<site>.+)", "name": "{Site}"},
            "policy p, key name: '{Site}', expected {site}, {tag} as its only parts",
        ),
        ({"name": "{tag"}, "policy p, key name: '{tag', expected {tag} as its only parts"),
        ({"name": ""}, "policy p, key name: '', expected printable text"),
        ({"name": "a\nb"}, "policy p, key name: 'a\\nb', expected printable text"),
        ({"name": "~{tag}"}, "expected none of the lake's own, which begin with ~"),
        ({"attrs": {"host": "{host}"}}, "policy p, key attrs: '{host}', expected {tag} as its only parts"),
        ({"attrs": [1]}, "policy p, key attrs: [1], expected an object"),
        ({"attrs": {"x": float("nan")}}, "policy p, key attrs: Out of range float values are not JSON compliant"),
        ({"attrs": {"x": "y" * 70_000}}, "policy p, key attrs: 70008 bytes, expected at most 65536"),
        ({"keep_seconds": 0}, "policy p, key keep_seconds: 0, expected a whole number of at least 1, or null"),
        ({"keep_bytes": True}, "policy p, key keep_bytes: True, expected a whole number of at least 1, or null"),
        ({"quota_bytes": 1.5}, "policy p, key quota_bytes: 1.5, expected a whole number of at least 1, or null"),
        ({"ids_seconds": "1h"}, "policy p, key ids_seconds: '1h', expected a whole number of at least 1, or null"),
        ({"dtype": "<f8"}, "policy p, key dtype: '<f8', expected none with into 'stream'"),
        ({"row_shape": [2]}, "policy p, key row_shape: [2], expected none with into 'stream'"),
        ({**ARRAY, "keep_bytes": 10}, "policy p, key keep_bytes: 10, expected none with into 'array'"),
        ({"into": "array"}, "policy p, key dtype: missing, expected numpy's name of one, or a list of fields"),
        ({"into": "array", "dtype": "O"}, "policy p, key dtype: 'O', expected one of numpy's, of a fixed size"),
        ({"into": "array", "dtype": "nothing"}, "policy p, key dtype: 'nothing', expected one of numpy's"),
        ({**ARRAY, "row_shape": [0]}, "policy p, key row_shape: [0], expected a list of lengths of at least 1"),
        ({**ARRAY, "row_shape": [1 << 20, 1 << 20]}, "policy p, key dtype: rows of 8796093022208 bytes"),
        ({"title": "\ud800"}, "policy p, key title: '\\ud800', expected at most 1024 bytes of text"),
        ({"pattern": "\ud800"}, "policy p, key pattern: '\\ud800', expected 1-1024 bytes of a regular expression"),
        ({"attrs": {"x": "\ud800"}}, "policy p, key attrs: 'utf-8' codec can't encode character"),
        ({"title": 5}, "policy p, key title: 5, expected at most 1024 bytes of text"),
    ],
)
def test_what_is_wrong_with_a_document_is_named(document: Any, message: str) -> None:
    with pytest.raises(ValueError, match="policy p") as caught:
        read("p", document)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a b", "ä", "a\n", "x" * 101, "~own", 5])
def test_a_policy_has_a_name_that_fits_into_a_url(name: Any) -> None:
    with pytest.raises(ValueError, match=r"policy name: .*, expected 1-100 letters, digits, _ \. -"):
        read(name, {})


def test_a_document_has_every_key() -> None:
    assert read("p", {}).document() == {
        "title": "",
        "pattern": ".+",
        "into": "stream",
        "name": "{tag}",
        "attrs": {},
        "dtype": None,
        "row_shape": [],
        "keep_seconds": None,
        "keep_bytes": None,
        "quota_bytes": None,
        "ids_seconds": None,
        "unmatched": "refuse",
    }
    assert read("p", read("p", {}).document()) == Policy()


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+", "(.*a){20}", "(?P<x>(a*)*)b"])
def test_a_pattern_takes_no_longer_than_its_tag_is_long(pattern: str) -> None:
    """In Python's `re` each of these takes longer than anybody lives for such a tag."""
    compiled = Pattern(pattern)
    began = time.process_time()
    assert compiled.match("a" * 1000 + "!") is None
    assert time.process_time() - began < 0.5


def test_a_pattern_must_match_the_whole_tag() -> None:
    policy = read(
        "p", {"pattern": r"(?P<site>[a-z]+)\.(?P<sensor>[a-z]+)(\.(?P<part>\d+))?", "name": "{site}/{sensor}"}
    )
    assert policy.place("north.wind") == ("north/wind", {"site": "north", "sensor": "wind", "part": ""})
    assert policy.place("north.wind.7") is not None
    for tag in ("north.wind.x", "xnorth.Wind", "north.wind\n", "\nnorth.wind", "north.wind\0", ""):
        assert policy.place(tag) is None


def test_what_a_tag_says_is_only_text() -> None:
    policy = read("p", {"name": "in/{tag}", "attrs": {"from": "{tag}", "list": ["{tag}", 1, {"{tag}": "{{tag}}"}]}})
    for tag in ("../../etc/passwd", "{{ 7*7 }}", "{tag}", "<script>alert(1)</script>", "%s%n", "${HOME}", "a'b\"c"):
        name, groups = policy.place(tag) or ("", {})
        assert name == f"in/{tag}"
        assert policy.attributes(tag, groups) == {"from": tag, "list": [tag, 1, {"{tag}": "{tag}"}]}


def test_templates() -> None:
    assert Template("{{{a}}}-{tag}", {"a"}).fill("t", {"a": "{tag}"}) == "{{tag}}-t"
    assert Template("plain", set()).fixed
    assert fill_values({"a": [1, None, True, "x"]}, "t", {}) == {"a": [1, None, True, "x"]}
    for wrong in ("{", "}", "{a", "a}", "{}", "{a.b}", "{tag!r}", "{tag:>9}"):
        with pytest.raises(ValueError, match="as its only parts"):
            Template(wrong, {"a"})


def test_policies_of_a_lake(lake: LocalLake) -> None:
    with pytest.raises(TransactionError, match="'raw': write: outside a transaction"):
        lake.policies.declare("raw")
    with lake.transaction():
        assert lake.policies.declare("raw", title="As it comes")
        assert not lake.policies.declare("raw", title="As it comes")
        assert lake.policies.declare("raw", name="x-{tag}")
        with pytest.raises(ValueError, match="policy raw, key into: 'x', expected stream or array"):
            lake.policies.declare("raw", into="x")
    assert list(lake.policies) == ["raw"]
    assert lake.policies["raw"] == {**Policy().document(), "name": "x-{tag}"}
    described = lake.policies.describe("raw")
    assert (described["policy"], described["revision"]) == ("raw", 2)
    with pytest.raises(MissingError, match="policies, 'none': none of this name"), lake.transaction():
        lake.policies.delete("none")
    with lake.transaction():
        lake.policies.delete("raw")
    assert len(lake.policies) == 0


def test_any_tag_has_a_place_or_a_reason(lake: LocalLake) -> None:
    """Whatever the tag, what is refused is refused by name; and for a sender that repeats for ever nothing is."""
    with lake.transaction():
        pattern = r"(?P<a>[^.]*)\.(?P<b>.*)"
        lake.policies.declare("p", pattern=pattern, name="{b}{{{a}}}", attrs={"x": ["{tag}", {"y": "{b}"}]})
    registry = Registry(lake.session(), "a-token-of-the-tests")
    chance, refused, placed = random.Random(6), 0, 0
    alphabet = ".~{}/\\%<>&;'\"\0\n\r\t\x1b\x7f\u202e\ufeff\ud800aé☃\U0001f600" + "ab. " * 8
    for _ in range(5000):
        tag = "".join(chance.choices(alphabet, k=chance.choice((1, 3, 9, 30, 2000))))
        lenient = registry.resolve("p", tag, OWNER, lenient=True)
        assert lenient.tag == tag
        if lenient.kind == "dead":
            with pytest.raises((RefusedError, TakenError), match=r"^(reference: |stream name: )") as caught:
                registry.resolve("p", tag, OWNER)
            assert str(caught.value) == lenient.refused
            refused += 1
            continue
        target = registry.resolve("p", tag, OWNER)
        a, _, b = tag.partition(".")
        assert (target.kind, target.name) == ("stream", f"{b}{{{a}}}")
        assert target.name.isprintable()
        assert not target.name.startswith("~")
        assert target.attrs == {"x": [tag, {"y": b}]}
        placed += 1
    assert min(refused, placed) > 500

from clachan.contract.api import Placement
from clachan.server.decisions.revision import content, content_digest
from hypothesis import given
from hypothesis import strategies as st

BASE = {
    "software": "acme.tools.web",
    "digest": "a" * 64,
    "type_": "main",
    "parameters": {"web_port": 80},
    "placement": Placement(),
    "state": "started",
}


def digest(**changes):
    return content_digest(content(**{**BASE, **changes}))


def test_every_part_counts():
    different = [
        digest(),
        digest(software="acme.tools.db"),
        digest(digest="b" * 64),
        digest(type_="worker"),
        digest(parameters={"web_port": 81}),
        digest(parameters={"web_port": "80"}),
        digest(parameters={"web_port": True}),
        digest(parameters={"web_port": 80.0}),
        digest(placement=Placement(node="here")),
        digest(placement=Placement(spread=True)),
        digest(state="stopped"),
    ]
    assert len(set(different)) == len(different)


def test_what_is_left_out_is_what_stands_by_default():
    assert digest(placement=Placement(labels={}, node=None, spread=False, inside=None)) == digest()


def test_a_reference_is_kept_as_declared():
    reference = {"from": "home.lake", "key": "url"}
    assert content(**{**BASE, "parameters": {"web_url": reference}})["parameters"]["web_url"] == reference


@given(parameters=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=5))
def test_order_does_not_count(parameters):
    backwards = dict(reversed(parameters.items()))
    assert digest(parameters=parameters) == digest(parameters=backwards)

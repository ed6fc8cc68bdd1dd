from clachan.contract.software import SoftwareMeta
from clachan.server.decisions.argument_spec import compile_role
from clachan.server.decisions.parameters import ParameterSchema, is_reference
from clachan.server.decisions.references import Published, Reference, Resolved, Unresolved, find, problems, resolve
from hypothesis import given
from hypothesis import strategies as st


def schema(options):
    return ParameterSchema(
        compile_role("acme.tools.ship", {"main": {"options": options}}, SoftwareMeta(title="x"))["main"]
    )


OPEN = schema(
    {
        "ship_url": {},
        "ship_port": {"type": "int"},
        "ship_token": {"no_log": True},
        "ship_env": {"type": "dict"},
        "ship_hosts": {"type": "list", "elements": "dict", "options": {"url": {}, "token": {"no_log": True}}},
    }
)
URL = {"from": "home.lake", "key": "url"}
TOKEN = {"from": "home.lake", "key": "token"}
LAKE = {"home.lake": Published({"url": "http://x", "token": "s3cret", "port": 80}, frozenset({"token"}))}


def test_find_everywhere():
    parameters = {"ship_url": URL, "ship_env": {"A": {"B": [TOKEN]}, "from": "x"}, "ship_port": 5}
    assert find(parameters) == [
        Reference("ship_url", "home.lake", "url"),
        Reference("ship_env.A.B[0]", "home.lake", "token"),
    ]


def test_more_or_fewer_keys_make_no_reference():
    assert find({"ship_env": {"from": "home.lake", "key": "url", "more": 1}, "ship_x": {"from": "home.lake"}}) == []


def test_only_instances_of_the_tenant():
    parameters = {
        "ship_a": {"from": "home.lake", "key": "url"},
        "ship_b": {"from": "other.lake", "key": "url"},
        "ship_c": {"from": "home.ship", "key": "url"},
        "ship_d": {"from": "Lake", "key": "url"},
        "ship_e": {"from": 5, "key": "url"},
        "ship_f": {"from": "home.lake", "key": "{{ x }}"},
        "ship_g": {"from": "home", "key": "url"},
    }
    assert problems(parameters, "home.ship") == [
        (
            "parameters.ship_b",
            "parameter ship_b: reference from other.lake, expected an instance of tenant home",
        ),
        ("parameters.ship_c", "parameter ship_c: reference from home.ship, expected another instance than itself"),
        ("parameters.ship_d", 'parameter ship_d: reference from "Lake", expected the path of an instance'),
        ("parameters.ship_e", "parameter ship_e: reference from 5, expected the path of an instance"),
        ("parameters.ship_f", 'parameter ship_f: reference to key "{{ x }}", expected a name'),
        ("parameters.ship_g", 'parameter ship_g: reference from "home", expected the path of an instance'),
    ]


def test_resolved_values_and_what_others_see():
    parameters = {"ship_url": URL, "ship_env": {"T": TOKEN}, "ship_token": TOKEN, "ship_hosts": [{"url": URL}]}
    assert resolve(parameters, LAKE, OPEN) == Resolved(
        parameters={
            "ship_url": "http://x",
            "ship_env": {"T": "s3cret"},
            "ship_token": "s3cret",
            "ship_hosts": [{"url": "http://x"}],
        },
        redacted={
            "ship_url": "http://x",
            "ship_env": {"T": "<secret>"},
            "ship_token": "<secret>",
            "ship_hosts": [{"url": "http://x"}],
        },
        sealed=("ship_env", "ship_hosts", "ship_token"),
    )


def test_a_secret_key_seals_an_open_parameter():
    resolved = resolve({"ship_url": TOKEN, "ship_port": 5}, LAKE, OPEN)
    assert isinstance(resolved, Resolved)
    assert (resolved.parameters["ship_url"], resolved.redacted["ship_url"]) == ("s3cret", "<secret>")
    assert resolved.sealed == ("ship_url",)


def test_waiting_for_a_value():
    assert resolve({"ship_url": URL}, {"home.lake": Published({})}, OPEN) == Unresolved(
        "waiting for home.lake to publish url"
    )
    assert resolve({"ship_url": URL}, {}, OPEN) == Unresolved(
        "waiting for home.lake to publish url: there is no instance home.lake"
    )


def test_a_published_value_of_another_type_is_not_handed_on():
    port = {"ship_port": {"from": "home.lake", "key": "url"}}
    assert resolve(port, LAKE, OPEN) == Unresolved(
        'waiting for another value: parameter ship_port: "http://x", expected integer'
    )
    secret = {"ship_port": TOKEN}
    assert resolve(secret, LAKE, OPEN) == Unresolved(
        "waiting for another value: parameter ship_port: <secret>, expected integer"
    )


def test_without_references_nothing_changes():
    parameters = {"ship_url": "{{ lookup('pipe', 'id') }}", "ship_token": "s3cret"}
    resolved = resolve(parameters, {}, OPEN)
    assert isinstance(resolved, Resolved)
    assert resolved.parameters == parameters
    assert resolved.redacted == parameters | {"ship_token": "<secret>"}


REFERENCES = st.fixed_dictionaries({"from": st.sampled_from(["home.lake", "home.web"]), "key": st.just("url")})
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "x", "{{ y }}"]) | REFERENCES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
ANY = schema({"ship_x": {"type": "raw"}})


def filled(value):
    if is_reference(value):
        return f"url of {value['from']}"
    if isinstance(value, dict):
        return {key: filled(inner) for key, inner in value.items()}
    return [filled(inner) for inner in value] if isinstance(value, list) else value


@given(value=VALUES)
def test_every_reference_is_found_and_filled(value):
    published = {path: Published({"url": f"url of {path}"}) for path in ("home.lake", "home.web")}
    resolved = resolve({"ship_x": value}, published, ANY)
    assert isinstance(resolved, Resolved)
    assert resolved.parameters == {"ship_x": filled(value)}
    assert find(resolved.parameters) == []

import re

import pytest
from clachan.contract.software import Option, SoftwareMeta
from clachan.server.decisions.ansible_names import RESERVED
from clachan.server.decisions.argument_spec import SpecError, compile_role
from clachan.server.decisions.parameters import ParameterSchema
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator


def compiled(specs, /, *, role="hello", **meta):
    return compile_role(f"acme.tools.{role}", {"main": {"options": specs}}, SoftwareMeta(title="x", **meta))["main"]


def messages(specs, parameters, /, **meta):
    return [problem.message for problem in ParameterSchema(compiled(specs, **meta)).problems(parameters)]


def refusal(specs, /, **meta):
    with pytest.raises(SpecError) as caught:
        compiled(specs, **meta)
    prefix = f"software acme.tools.{meta.get('role', 'hello')}: "
    assert str(caught.value).startswith(prefix)
    return str(caught.value).removeprefix(prefix)


VALUES = {
    "str": ("text", "", "{{ x }}", "$HOME"),
    "path": ("/a/$HOME/~b",),
    "int": (0, -5, 2**70),
    "float": (0, 1.5),
    "bool": (True, False),
    "list": ([], [1, "a", {}]),
    "dict": ({}, {"hosts": {"a": {"vars": 1}}}),
    "raw": (None, 1, "x", [], {}),
    "json": ("{}", {}, []),
    "jsonarg": ("{}",),
    "bytes": (5, "10MB", "1.5 G", "7"),
    "bits": (5, "10Mb", "2k".upper()),
}


@pytest.mark.parametrize("type_", VALUES)
def test_every_type_takes_its_values_and_a_reference(type_):
    schema = compiled({"hello_x": {"type": type_}})
    Draft202012Validator.check_schema(schema)
    for value in (*VALUES[type_], {"from": "home.lake", "key": "url"}):
        assert ParameterSchema(schema).problems({"hello_x": value}) == []


@pytest.mark.parametrize(
    ("type_", "value", "message"),
    [
        ("int", "80", 'parameter hello_x: "80", expected integer'),
        ("int", 80.0, "parameter hello_x: 80.0, expected integer"),
        ("int", True, "parameter hello_x: true, expected integer"),
        ("int", None, "parameter hello_x: null, expected integer"),
        ("float", "1.5", 'parameter hello_x: "1.5", expected number'),
        ("float", True, "parameter hello_x: true, expected number"),
        ("float", float("nan"), "parameter hello_x: nan, expected a finite number"),
        ("bool", "yes", 'parameter hello_x: "yes", expected boolean'),
        ("bool", 1, "parameter hello_x: 1, expected boolean"),
        ("str", 5, "parameter hello_x: 5, expected string"),
        ("path", [], "parameter hello_x: [], expected string"),
        ("list", "a,b", 'parameter hello_x: "a,b", expected list'),
        ("dict", "a=b", 'parameter hello_x: "a=b", expected object'),
        ("json", 5, "parameter hello_x: 5, expected object or list or string"),
        ("bytes", "ten", 'parameter hello_x: "ten", expected a size in bytes such as 10MB'),
        ("bytes", "10MB\n", 'parameter hello_x: "10MB\\n", expected a size in bytes such as 10MB'),
        ("bytes", -1, "parameter hello_x: -1, expected at least 0"),
        ("bits", "10MB", 'parameter hello_x: "10MB", expected a size in bits such as 10Mb'),
        ("raw", "a\0b", "parameter hello_x: text with a NUL character, expected text without"),
        ("raw", ["\ud800"], "parameter hello_x[0]: text with half of a surrogate pair, expected text without"),
        ("raw", {"\0": 1}, "parameter hello_x: a key with a NUL character, expected keys without"),
    ],
)
def test_nothing_is_coerced(type_, value, message):
    assert messages({"hello_x": {"type": type_}}, {"hello_x": value}) == [message]


@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_text_is_taken_as_it_is(text):
    assert messages({"hello_x": {}, "hello_y": {"type": "path"}}, {"hello_x": text, "hello_y": text}) == []


@given(text=st.text(min_size=1))
def test_messages_are_fit_for_a_terminal(text):
    told = messages({"hello_x": {"type": "int"}}, {"hello_x": text, text: {text: text}})
    assert told
    assert all(message.isprintable() for message in told)


def test_many_problems_are_cut_short():
    assert len(messages({"hello_x": {"type": "list", "elements": "int"}}, {"hello_x": ["a"] * 1000})) == 20


def test_nesting_is_limited():
    value = []
    for _ in range(40):
        value = [value]
    where = "hello_x" + "[0]" * 32
    assert messages({"hello_x": {"type": "raw"}}, {"hello_x": value}) == [
        f"parameter {where}: nested too deep, expected at most 32 levels"
    ]


def test_type_is_str_where_none_is_given():
    assert messages({"hello_x": None or {}}, {"hello_x": 1}) == ["parameter hello_x: 1, expected string"]


def test_unknown_parameter_is_named_and_its_value_is_not():
    problems = ParameterSchema(compiled({"hello_a": {}, "hello_b": {}})).problems({"ansible_host": "10.0.0.66"})
    assert problems == [
        ("parameters.ansible_host", "parameter ansible_host: unknown, expected one of hello_a, hello_b")
    ]
    assert messages({}, {"x": 1}) == ["parameter x: unknown, expected none"]


def test_required():
    options = {"hello_a": {"required": True, "type": "int"}, "hello_ab": {"required": True}, "hello_c": {}}
    assert messages(options, {}) == [
        "parameter hello_a: missing, expected integer",
        "parameter hello_ab: missing, expected string",
    ]
    assert messages(options, {"hello_a": 1, "hello_ab": "x"}) == []


def test_what_the_controller_generates_is_not_required_of_the_tenant():
    options = {"hello_token": {"required": True, "no_log": True}}
    assert messages(options, {}, generate=["hello_token"]) == []


def test_choices():
    options = {"hello_x": {"choices": ["a", "b"]}, "hello_y": {"type": "list", "elements": "int", "choices": [1, 2]}}
    assert messages(options, {"hello_x": "a", "hello_y": [1, 2]}) == []
    assert messages(options, {"hello_x": "c", "hello_y": [1, 3]}) == [
        'parameter hello_x: "c", expected one of "a", "b"',
        "parameter hello_y[1]: 3, expected one of 1, 2",
    ]


def test_suboptions_and_lists_of_them():
    point = {"x": {"type": "int", "required": True}, "y": {"type": "int"}}
    options = {
        "hello_one": {"type": "dict", "options": point},
        "hello_many": {"type": "list", "elements": "dict", "options": point},
    }
    reference = {"from": "home.a", "key": "x"}
    assert messages(options, {"hello_one": {"x": reference}, "hello_many": [reference, {"x": 1}]}) == []
    assert messages(options, {"hello_one": {"z": 1}, "hello_many": [{"x": "1"}, 5]}) == [
        'parameter hello_many[0].x: "1", expected integer',
        "parameter hello_many[1]: 5, expected object",
        "parameter hello_one.x: missing, expected integer",
        "parameter hello_one.z: unknown, expected one of x, y",
    ]


def test_limits_of_meta():
    limits = {
        "hello_port": Option(minimum=1, maximum=65535),
        "hello_name": Option(pattern="^[a-z]+$", max_length=5),
        "hello_names": Option(pattern="a|b"),
    }
    options = {"hello_port": {"type": "int"}, "hello_name": {}, "hello_names": {"type": "list", "elements": "str"}}
    right = {"hello_port": 80, "hello_name": "abc", "hello_names": ["a", "b"]}
    assert messages(options, right, options=limits) == []
    wrong = {"hello_port": 70000, "hello_name": "a\n", "hello_names": ["ab"]}
    assert messages(options, wrong, options=limits) == [
        'parameter hello_name: "a\\n", expected text like ^[a-z]+$',
        'parameter hello_names[0]: "ab", expected text like a|b',
        "parameter hello_port: 70000, expected at most 65535",
    ]
    assert messages(options, {"hello_port": 0, "hello_name": "abcdef"}, options=limits) == [
        'parameter hello_name: "abcdef", expected at most 5 characters',
        "parameter hello_port: 0, expected at least 1",
    ]


def database(**conditions):
    names = {"user": {}, "password": {"no_log": True}, "socket": {}, "mode": {"choices": ["tcp", "file"]}}
    return {"hello_db": {"type": "dict", "options": names, **conditions}}


@pytest.mark.parametrize(
    ("conditions", "right", "wrong", "message"),
    [
        (
            {"mutually_exclusive": [["user", "socket"]]},
            [{}, {"user": "u"}, {"socket": "s"}],
            {"user": "u", "socket": "s"},
            "user, socket: given together, expected at most one",
        ),
        (
            {"required_together": [["user", "password"]]},
            [{}, {"user": "u", "password": "p"}],
            {"user": "u"},
            "user, password: some missing, expected all or none",
        ),
        (
            {"required_one_of": [["user", "socket"]]},
            [{"user": "u"}, {"user": "u", "socket": "s"}],
            {},
            "user, socket: missing, expected at least one",
        ),
        (
            {"required_if": [["mode", "tcp", ["user", "password"]]]},
            [{}, {"mode": "file"}, {"mode": "tcp", "user": "u", "password": "p"}],
            {"mode": "tcp", "user": "u"},
            'user, password: missing, expected all since mode is "tcp"',
        ),
        (
            {"required_if": [["mode", "tcp", ["user", "password"], True]]},
            [{}, {"mode": "tcp", "user": "u"}],
            {"mode": "tcp"},
            'user, password: missing, expected at least one since mode is "tcp"',
        ),
        (
            {"required_by": {"user": ["password"], "socket": "mode"}},
            [{}, {"password": "p"}, {"user": "u", "password": "p"}, {"socket": "s", "mode": "tcp"}],
            {"user": "u"},
            "password: missing, expected with user",
        ),
    ],
)
def test_conditions_between_options(conditions, right, wrong, message):
    options = database(**conditions)
    for value in right:
        assert messages(options, {"hello_db": value}) == []
    assert messages(options, {"hello_db": wrong}) == [f"parameter hello_db: {message}"]


def test_conditions_between_parameters():
    spec = {"main": {"options": {"hello_a": {}, "hello_b": {}}, "mutually_exclusive": [["hello_a", "hello_b"]]}}
    schema = ParameterSchema(compile_role("acme.tools.hello", spec, SoftwareMeta(title="x"))["main"])
    assert schema.problems({"hello_a": "1", "hello_b": "2"}) == [
        ("parameters", "parameters hello_a, hello_b: given together, expected at most one")
    ]


def test_an_option_with_a_default_counts_as_given():
    names = {"mode": {"default": "tcp"}, "host": {}, "socket": {"default": "s"}}
    spec = {"type": "dict", "options": names, "required_one_of": [["host", "socket"]]}
    spec["required_if"] = [["mode", "tcp", ["host"]]]
    assert messages({"hello_x": spec}, {"hello_x": {}}) == [
        'parameter hello_x: host: missing, expected all since mode is "tcp"'
    ]
    assert messages({"hello_x": spec}, {"hello_x": {"mode": "file"}}) == []


@pytest.mark.parametrize(
    "conditions",
    [
        {"mutually_exclusive": [["user", "nobody"]]},
        {"required_if": [["mode"]]},
        {"required_by": {"nobody": ["user"]}},
        {"required_one_of": 5},
    ],
)
def test_conditions_that_are_none(conditions):
    key = next(iter(conditions))
    assert refusal(database(**conditions)).startswith(f"option hello_db: {key} ")


def test_secrets_nested_too():
    options = {
        "hello_password": {"no_log": True},
        "hello_db": {"type": "dict", "options": {"user": {}, "password": {"no_log": True, "default": "known"}}},
        "hello_users": {"type": "list", "elements": "dict", "options": {"keys": {"type": "raw", "no_log": True}}},
        "hello_open": {"no_log": False},
    }
    schema = ParameterSchema(compiled(options))
    assert schema.sealed == {"hello_password", "hello_db", "hello_users"}
    assert "known" not in str(compiled(options))
    reference = {"from": "home.a", "key": "b"}
    given = {
        "hello_password": "s3cret",
        "hello_db": {"user": "u", "password": "s3cret"},
        "hello_users": [{"keys": {"deep": ["s3cret"]}}, {"keys": reference}],
        "hello_open": "shown",
    }
    assert schema.redact(given) == {
        "hello_password": "<secret>",
        "hello_db": {"user": "u", "password": "<secret>"},
        "hello_users": [{"keys": "<secret>"}, {"keys": reference}],
        "hello_open": "shown",
    }
    assert schema.redact({"hello_password": reference, "hello_db": "s3cret"}) == {
        "hello_password": reference,
        "hello_db": "<secret>",
    }


def test_secrets_are_not_echoed():
    options = {
        "hello_password": {"no_log": True, "choices": ["a"]},
        "hello_keys": {"type": "list", "elements": "str", "no_log": True},
        "hello_db": {"type": "dict", "options": {"password": {"no_log": True, "type": "int"}}},
    }
    for value in ("s3cret", ["s3cret"], [["s3cret"]], {"password": "s3cret"}, {"password": {"a": "s3cret"}}):
        for name in options:
            for message in messages(options, {name: value}):
                assert "s3cret" not in message


def test_the_placeholder_of_a_secret_is_no_secret():
    assert messages({"hello_x": {"no_log": True}}, {"hello_x": "<secret>"}) == [
        "parameter hello_x: <secret>, expected the secret itself"
    ]


def test_types_are_the_entry_points_but_two():
    spec = {"main": {}, "worker": {"options": {"hello_x": {}}}, "supply": None, "absent": {"options": {"hello_x": {}}}}
    types = compile_role("acme.tools.hello", spec, SoftwareMeta(title="x"))
    assert set(types) == {"main", "worker"}
    assert types["main"]["properties"] == {}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "no entry point main, expected one"),
        ([], "argument_specs: list, expected a mapping"),
        ({"main": {"options": []} | {"options": [1]}}, "entry point main: options: list, expected a mapping"),
        ({"main": {}, "My-Type": {}}, "entry point My-Type: not a name, expected [a-z][a-z0-9_]{0,30}"),
        ({"main": {"opts": {}}}, "entry point main: opts, expected one of author, description"),
        (
            {"main": {}, "supply": {"options": {"hello_x": {}}}},
            "entry point supply: options, expected none: a supply has no parameters",
        ),
    ],
)
def test_entry_points_refused(spec, message):
    with pytest.raises(SpecError, match=re.escape(f"software acme.tools.hello: {message}")):
        compile_role("acme.tools.hello", spec, SoftwareMeta(title="x"))


@pytest.mark.parametrize(
    ("role", "name", "message"),
    [
        ("hello", "port", "option port: not the role's own, expected a name that begins hello_"),
        ("hello", "hello_", "option hello_: not the role's own, expected a name that begins hello_"),
        ("hello", "hello-port", "option hello-port: not a variable's name"),
        ("hello", "hello_é", "option hello_é: not a variable's name"),
        ("hello", "ansible_host", "option ansible_host: a name of the platform or of Ansible"),
        ("hello", "clachan_instance", "option clachan_instance: a name of the platform or of Ansible"),
        ("clachan", "clachan_instance", "option clachan_instance: a name of the platform or of Ansible"),
        ("ansible", "ansible_host", "option ansible_host: a name of the platform or of Ansible"),
        ("become", "become_user", "option become_user: a name that Ansible reserves, expected another"),
        ("role", "role_path", "option role_path: a name that Ansible reserves, expected another"),
    ],
)
def test_names_refused(role, name, message):
    assert refusal({name: {}}, role=role).startswith(message)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (None, "option hello_x: NoneType, expected a mapping"),
        ({"type": "strr"}, "option hello_x: type 'strr', expected one of bits, bool"),
        ({"aliases": ["y"]}, "option hello_x: aliases, expected one of"),
        ({"fallback": ["env"]}, "option hello_x: fallback, expected one of"),
        ({"elements": "str"}, "option hello_x: elements of a str, expected type list"),
        ({"type": "list", "elements": "list"}, "option hello_x: elements 'list', expected one of the types but list"),
        ({"type": "list", "options": {}}, "option hello_x: elements None, expected one of the types but list"),
        ({"options": {"a": {}}}, "option hello_x: options of a str, expected type dict or a list of them"),
        ({"type": "dict", "options": []}, "option hello_x: options: list, expected a mapping"),
        ({"type": "dict", "options": {"a": {"type": "x"}}}, "option hello_x.a: type 'x', expected one of"),
        (
            {"type": "dict", "options": {"from": {}, "key": {}, "more": {}}},
            "option hello_x: suboptions from and key, expected not both: they make a reference",
        ),
        ({"type": "dict", "required_by": {"a": "b"}}, "option hello_x: required_by, expected it beside options"),
        ({"choices": [True]}, "option hello_x: choice True, expected string"),
        ({"choices": "ab"}, "option hello_x: choices 'ab', expected a list of values of JSON"),
        ({"type": "raw", "choices": [{1}]}, "option hello_x: choices [{1}], expected a list of values of JSON"),
        ({"type": "dict", "options": {5: {}}}, "option hello_x: suboption 5, expected a text as its name"),
        ({"type": "int", "choices": [True]}, "option hello_x: choice True, expected integer"),
        ({"required": True, "default": "x"}, "option hello_x: required and a default, expected one of both"),
        ({"required": "yes"}, "option hello_x: required 'yes', expected true or false"),
        ({"default": {1, 2}}, "option hello_x: default {1, 2}, expected a value of JSON"),
    ],
)
def test_options_refused(option, message):
    assert refusal({"hello_x": option}).startswith(message)


def test_capacity_may_come_from_parameters_that_are_always_numbers():
    memory = {"capacity_from": {"memory_mib": {"option": "hello_n"}}, "options": {"hello_n": Option(minimum=0)}}
    for option in ({"required": True}, {"default": 512}):
        compiled({"hello_n": {"type": "int", **option}}, **memory)
    expected = ", expected an int option with a minimum from 0 on, required or with a default"
    for wrong in ({}, {"no_log": True, "required": True}):
        said = refusal({"hello_n": {"type": "int", **wrong}}, **memory)
        assert said == "meta/clachan.yml capacity_from memory_mib: hello_n of type main" + expected
    unbounded = {"capacity_from": {"cpu_milli": {"option": "hello_n", "factor": 1000}}}
    for option in ({"type": "int", "default": 1}, {"type": "str", "required": True}):
        said = refusal({"hello_n": option}, **unbounded)
        assert said == "meta/clachan.yml capacity_from cpu_milli: hello_n of type main" + expected
    assert refusal({}, **memory | {"options": {}}).endswith(expected)


def test_what_makes_a_node_needs_root():
    compiled({}, makes_node=True, needs_root=True)
    for meta in ({"needs_root": False}, {"needs_root": True, "shared": True}):
        said = refusal({}, makes_node=True, **meta)
        assert said == "meta/clachan.yml makes_node: expected it with needs_root, and not shared"


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"options": {"hello_y": Option()}}, "meta/clachan.yml options: hello_y, expected an option of a type"),
        ({"options": {"hello_x": Option(minimum=1)}}, "option hello_x: minimum or maximum, expected them of a number"),
        (
            {"options": {"hello_n": Option(pattern="a")}},
            "option hello_n: pattern or max_length, expected them of a text",
        ),
        ({"options": {"hello_x": Option(pattern="(")}}, "option hello_x: pattern '(', expected a regular expression"),
        ({"generate": ["hello_x"]}, "meta/clachan.yml generate: hello_x, expected an option of type str with no_log"),
        ({"generate": ["hello_y"]}, "meta/clachan.yml generate: hello_y, expected an option of type str with no_log"),
    ],
)
def test_meta_refused(meta, message):
    assert refusal({"hello_x": {}, "hello_n": {"type": "int"}}, **meta).startswith(message)


def test_annotations_are_kept():
    option = {"description": ["One.", "Two."], "default": "{{ x }}", "version_added": "1", "removed_in_version": "2"}
    schema = compiled({"hello_x": option})["properties"]["hello_x"]
    assert schema["description"] == "One.\nTwo."
    assert schema["default"] == "{{ x }}"
    assert schema["deprecated"] is True


def test_reserved_names_are_those_of_the_installed_ansible():
    reserved = pytest.importorskip("ansible.vars.reserved")
    assert {name for name in reserved.get_reserved_names() if "_" in name} <= RESERVED | {"with_"}

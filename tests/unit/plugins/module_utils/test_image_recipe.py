# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.clachan.platform.plugins.module_utils import image_recipe
from ansible_collections.clachan.platform.plugins.module_utils.image_process import BuildError

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0bn3NLFjZ7Hd3p9Ee7vVxkoKrxUShJp9Qv4TzEb7Jk admin@example"
PAYLOADS = [
    "{{ lookup('ansible.builtin.pipe', 'touch canary') }}",
    "{% set x = 1 %}",
    "$(touch canary)",
    "`touch canary`",
    "a; touch canary",
    "a\ntouch canary",
    "-oProxyCommand=touch",
    "a b",
    "../up",
    "a\0b",
    "ä",
]
PLACES = [
    lambda text: {"name": text},
    lambda text: {"packages": [text]},
    lambda text: {"roles": [text]},
    lambda text: {"roles": ["/srv/" + text]},
    lambda text: {"playbooks": [text]},
    lambda text: {"playbooks": ["/srv/" + text]},
    lambda text: {"users": [{"name": text}]},
    lambda text: {"users": [{"name": "ann", "groups": [text]}]},
    lambda text: {"users": [{"name": "ann", "authorized_keys": [text]}]},
    lambda text: {"users": [{"name": "ann", "authorized_keys": [KEY + " " + text]}]},
    lambda text: {"users": [{"name": "ann", "shell": text}]},
    lambda text: {"base": text},
    lambda text: {"size": text},
    lambda text: {"format": text},
    lambda text: {"agent": text},
]
NOT_TEXT = [7, 0.5, True, ["a"], {"a": "b"}]


def refused(recipe):
    with pytest.raises(BuildError) as told:
        image_recipe.normalize(recipe)
    return str(told.value)


def test_defaults_are_filled_in_and_sets_are_sorted():
    whole = image_recipe.normalize({"name": "web", "packages": ["nginx", "curl", "nginx"], "roles": None})
    assert whole == {
        "name": "web",
        "base": "debian-12",
        "size": "3GiB",
        "packages": ["curl", "nginx"],
        "roles": [],
        "playbooks": [],
        "users": [],
        "format": "qcow2",
        "agent": True,
    }
    assert image_recipe.normalize(whole) == whole


def test_users():
    whole = image_recipe.normalize({"name": "web", "users": [{"name": "ann", "authorized_keys": [KEY]}]})
    assert whole["users"] == [{"name": "ann", "authorized_keys": [KEY], "groups": [], "shell": "/bin/bash"}]


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("place", PLACES)
def test_no_value_has_room_for_a_template_a_command_or_an_option(place, payload):
    recipe = dict({"name": "web"}, **place(payload))
    if payload in ("../up", "-oProxyCommand=touch", "a b"):
        try:  # inside a path or in the comment of a key, they are what they look like
            image_recipe.normalize(recipe)
        except BuildError:
            return
        assert payload not in (recipe["name"], *recipe.get("roles", ()), *recipe.get("playbooks", ()))
        return
    assert repr(payload)[1:-1] in refused(recipe)


@pytest.mark.parametrize("value", NOT_TEXT)
@pytest.mark.parametrize("key", ["name", "base", "size", "format"])
def test_a_value_that_is_no_text_is_told(key, value):
    assert repr(value) in refused(dict({"name": "web"}, **{key: value}))


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        ([], "recipe: a list, expected a mapping"),
        (
            {"name": "web", "sise": "3GiB"},
            "recipe: option 'sise', expected one of name, base, size, packages, roles, playbooks, users, format, agent",
        ),
        ({"name": "Web"}, "name of the recipe: 'Web', expected a lower-case letter, then letters, digits, _ and -"),
        ({}, "name of the recipe: None, expected a lower-case letter, then letters, digits, _ and -"),
        ({"name": "web", "base": "sid"}, "base of the recipe: 'sid', expected debian-12 or the sha256 of an image"),
        ({"name": "web", "size": "9MiB"}, "size of the recipe: '9MiB', expected 1GiB to 1024GiB, in MiB or GiB"),
        ({"name": "web", "format": "vdi"}, "format of the recipe: 'vdi', expected qcow2 or raw"),
        ({"name": "web", "agent": "no"}, "agent of the recipe: 'no', expected true or false"),
        ({"name": "web", "packages": ["A"]}, "package of the recipe: 'A', expected the name of a Debian package"),
        ({"name": "web", "packages": "nginx"}, "package of the recipe: a str, expected a list"),
        ({"name": "web", "users": ["ann"]}, "user of the recipe: a str, expected a mapping with name"),
        (
            {"name": "web", "users": [{"name": "ann", "uid": 3}]},
            "user of the recipe: option 'uid', expected name, authorized_keys, groups, shell",
        ),
        (
            {"name": "web", "users": [{"name": "ann", "authorized_keys": ['command="x" ' + KEY]}]},
            "authorized key of user ann: 'command=\"x\" %s', expected a public key of OpenSSH" % KEY,
        ),
    ],
)
def test_a_wrong_recipe_is_told(recipe, text):
    assert refused(recipe) == text


@pytest.mark.parametrize(("text", "size"), [("1GiB", 1 << 30), ("1536MiB", 1536 << 20), ("1024GiB", 1 << 40)])
def test_sizes(text, size):
    assert image_recipe.size_of(text) == size


@pytest.fixture
def sources(tmp_path):
    """A platform collection, a role in a folder, one in a collection, and a playbook."""
    files = {
        "platform/roles/node/tasks/main.yml": "[]",
        "role/tasks/main.yml": "[]",
        "collections/ansible_collections/acme/web/roles/site/tasks/main.yml": "[]",
        "books/site.yml": "[]",
        "books/files/page": "hello",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def digest(sources, **more):
    recipe = {
        "name": "web",
        "roles": ["acme.web.site", str(sources / "role")],
        "playbooks": [str(sources / "books/site.yml")],
    }
    whole = image_recipe.normalize(dict(recipe, **more))
    return image_recipe.digest(whole, str(sources / "platform"), [str(sources / "collections")])


def test_the_digest_is_of_what_the_recipe_names(sources):
    first = digest(sources)
    assert digest(sources) == first
    assert digest(sources, size="4GiB") != first
    for name in (
        "platform/roles/node/tasks/main.yml",
        "role/tasks/main.yml",
        "collections/ansible_collections/acme/web/roles/site/tasks/main.yml",
        "books/site.yml",
        "books/files/page",
    ):
        before = digest(sources)
        (sources / name).write_text("changed")
        assert digest(sources) != before, name


def test_what_python_left_does_not_count(sources):
    first = digest(sources)
    (sources / "role/__pycache__").mkdir()
    (sources / "role/__pycache__/x.pyc").write_bytes(b"x")
    assert digest(sources) == first


def test_missing_content_is_told(sources):
    with pytest.raises(BuildError) as told:
        digest(sources, roles=["acme.web.none"])
    assert str(told.value) == "role acme.web.none: not found in %s/collections, expected its collection there" % sources
    with pytest.raises(BuildError) as told:
        digest(sources, playbooks=["/srv/none.yml"])
    assert str(told.value) == "playbook /srv/none.yml: /srv/none.yml does not exist, expected it"

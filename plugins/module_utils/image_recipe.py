# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A recipe of an image: what it may say, and the digest of all that it stands for.

Everything in a recipe goes into argument lists and, as text, into an Ansible play; so each value must match a pattern
that has no place for a template, a second line or an option.
"""

from __future__ import annotations

import hashlib
import json
import os
import re

from ansible_collections.clachan.platform.plugins.module_utils.image_process import BuildError

NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}\Z")
BASES = ("debian-12",)
SHA256 = re.compile(r"[0-9a-f]{64}\Z")
SIZE = re.compile(r"([1-9][0-9]{0,6})(MiB|GiB)\Z")
UNITS = {"MiB": 1 << 20, "GiB": 1 << 30}
SMALLEST, LARGEST = 1 << 30, 1 << 40
PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{1,99}(:[a-z0-9]+)?(=[A-Za-z0-9.+:~-]{1,99})?\Z")
FQCN = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*){2,}\Z")
PATH = re.compile(r"(/[\w.@+=,~-]+)+\Z", re.ASCII)
USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}\Z")
KEY = re.compile(
    r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-ssh-ed25519@openssh\.com|"
    r"sk-ecdsa-sha2-nistp256@openssh\.com) [A-Za-z0-9+/]{40,2000}={0,3}( [\w.@+=,:/ -]{0,200})?\Z",
    re.ASCII,
)
DEFAULTS = {
    "base": "debian-12",
    "size": "3GiB",
    "packages": [],
    "roles": [],
    "playbooks": [],
    "users": [],
    "format": "qcow2",
    "agent": True,
}
USER_DEFAULTS = {"authorized_keys": [], "groups": [], "shell": "/bin/bash"}
BESIDE = ("files", "group_vars", "handlers", "host_vars", "library", "roles", "tasks", "templates", "vars")
"""Folders beside a playbook that it takes things from, so they count as its content."""
OWN_PARTS = ("meta", "plugins", "roles", "playbooks", "files")
NEVER = ("__pycache__", ".git")


# -- what it says ----------------------------------------------------------------------------------------------------


def normalize(recipe):
    """The whole recipe with its defaults, in one form for all that mean the same. Raises BuildError."""
    if not isinstance(recipe, dict):
        raise BuildError("recipe: a %s, expected a mapping" % type(recipe).__name__)
    unknown = sorted(str(key) for key in set(recipe) - set(DEFAULTS) - {"name"})
    if unknown:
        raise BuildError("recipe: option %r, expected one of %s" % (unknown[0], ", ".join(["name", *DEFAULTS])))
    whole = dict(DEFAULTS, **{key: value for key, value in recipe.items() if value is not None})
    _text(whole.get("name"), "name of the recipe", NAME, "a lower-case letter, then letters, digits, _ and -")
    if whole["base"] not in BASES:
        _text(whole["base"], "base of the recipe", SHA256, "%s or the sha256 of an image" % " or ".join(BASES))
    size_of(whole["size"])
    if whole["format"] not in ("qcow2", "raw"):
        raise BuildError("format of the recipe: %r, expected qcow2 or raw" % (whole["format"],))
    if not isinstance(whole["agent"], bool):
        raise BuildError("agent of the recipe: %r, expected true or false" % (whole["agent"],))
    whole["packages"] = sorted(
        set(_texts(whole["packages"], "package of the recipe", PACKAGE, "the name of a Debian package"))
    )
    whole["roles"] = [_role(role) for role in _list(whole["roles"], "roles of the recipe")]
    whole["playbooks"] = [_path(path, "playbook") for path in _list(whole["playbooks"], "playbooks of the recipe")]
    whole["users"] = [_user(user) for user in _list(whole["users"], "users of the recipe")]
    return whole


def size_of(text):
    """The bytes of a size such as 3GiB."""
    match = SIZE.match(text) if isinstance(text, str) else None
    size = int(match.group(1)) * UNITS[match.group(2)] if match else 0
    if not SMALLEST <= size <= LARGEST:
        raise BuildError("size of the recipe: %r, expected 1GiB to 1024GiB, in MiB or GiB" % (text,))
    return size


def _role(role):
    if isinstance(role, str) and FQCN.match(role):
        return role
    return _path(role, "role")


def _path(path, what):
    return _text(path, what, PATH, "an absolute path of letters, digits and . _ @ + = , ~ -, or for a role its FQCN")


def _user(user):
    if not isinstance(user, dict):
        raise BuildError("user of the recipe: a %s, expected a mapping with name" % type(user).__name__)
    unknown = sorted(str(key) for key in set(user) - set(USER_DEFAULTS) - {"name"})
    if unknown:
        raise BuildError("user of the recipe: option %r, expected name, %s" % (unknown[0], ", ".join(USER_DEFAULTS)))
    whole = dict(USER_DEFAULTS, **{key: value for key, value in user.items() if value is not None})
    _text(whole.get("name"), "user of the recipe", USER, "a lower-case letter or _, then letters, digits, _ and -")
    _texts(whole["authorized_keys"], "authorized key of user %s" % whole["name"], KEY, "a public key of OpenSSH")
    whole["groups"] = sorted(set(_texts(whole["groups"], "group of user %s" % whole["name"], USER, "a group's name")))
    _text(whole["shell"], "shell of user %s" % whole["name"], PATH, "an absolute path")
    return whole


def _list(value, what):
    if not isinstance(value, list):
        raise BuildError("%s: a %s, expected a list" % (what, type(value).__name__))
    return value


def _texts(values, what, pattern, expected):
    return [_text(value, what, pattern, expected) for value in _list(values, what)]


def _text(value, what, pattern, expected):
    if not isinstance(value, str) or not pattern.match(value):
        raise BuildError("%s: %r, expected %s" % (what, value, expected))
    return value


# -- what it stands for ----------------------------------------------------------------------------------------------


def digest(recipe, collection, collection_paths=()):
    """The sha256 of a normalized recipe and of the content that it names; the same for every builder.

    collection: the folder of the platform collection; collection_paths: where roles named by FQCN are looked for.
    """
    content = {
        "recipe": recipe,
        "platform": collection_digest(collection),
        "roles": [role_digest(role, collection_paths) for role in recipe["roles"]],
        "playbooks": [playbook_digest(path) for path in recipe["playbooks"]],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def collection_digest(folder):
    """Of an installed collection its manifest's sha256, which covers every file; of a clone its files'."""
    manifest = os.path.join(folder, "MANIFEST.json")
    if os.path.exists(manifest):
        with open(manifest, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    return tree_digest(*[os.path.join(folder, part) for part in OWN_PARTS])


def role_digest(role, collection_paths):
    """Of a role by FQCN the digest of its collection, as it may use all of it; of a folder its files'."""
    if role.startswith("/"):
        return tree_digest(_existing(os.path.join(role, "tasks"), "role %s" % role), role)
    return collection_digest(role_collection(role, collection_paths))


def role_collection(role, collection_paths):
    """The folder of the collection that has a role named by FQCN. Raises BuildError."""
    namespace, name, inner = role.split(".", 2)
    for path in collection_paths:
        folder = os.path.join(path, "ansible_collections", namespace, name)
        if os.path.isdir(os.path.join(folder, "roles", inner.replace(".", os.sep))):
            return folder
    places = ", ".join(collection_paths) or "no folder"
    raise BuildError("role %s: not found in %s, expected its collection there" % (role, places))


def playbook_digest(path):
    _existing(path, "playbook %s" % path)
    return tree_digest(path, *[os.path.join(os.path.dirname(path), name) for name in BESIDE])


def _existing(path, what):
    if not os.path.exists(path):
        raise BuildError("%s: %s does not exist, expected it" % (what, path))
    return path


def tree_digest(*places):
    """The sha256 of files: of their names, their right to be run and their content. What is missing counts as empty."""
    total = hashlib.sha256()
    for number, place in enumerate(places):
        for path in _files(place):
            name = os.path.relpath(path, place)
            runs = os.path.isfile(path) and os.stat(path).st_mode & 0o100
            total.update(b"%d\0%s\0%d\0" % (number, name.encode(), bool(runs)))
            total.update(_content(path))
    return total.hexdigest()


def _files(place):
    if os.path.isfile(place):
        return [place]
    found = []
    for folder, folders, files in os.walk(place):
        folders[:] = [name for name in folders if name not in NEVER]
        found += [os.path.join(folder, name) for name in files if not name.endswith(".pyc")]
    return sorted(found)


def _content(path):
    if os.path.islink(path) and not os.path.isfile(path):
        return hashlib.sha256(os.readlink(path).encode()).digest()
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).digest()

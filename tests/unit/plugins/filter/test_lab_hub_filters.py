# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import hashlib
import json

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.clachan.platform.plugins.filter.lab_hub_files import derived, lab_hub_files
from ansible_collections.clachan.platform.plugins.filter.lab_requests import lab_requests
from ansible_collections.clachan.platform.plugins.filter.lab_user_files import lab_user_files

SLOT = "/var/lib/clachan/slots/s003"
HOME = "/home/%s" % "alice"
SECRET = "secret-of-the-hub-0123456789"


def instance(children=None):
    slot = {
        "directory": SLOT,
        "addresses": {"ipv4": "127.9.0.19"},
        "ports": {"first": 20060},
        "limits": {"cpu_milli": 1000},
    }
    more = {"path": "home.hub", "tenant": "home", "node": "oak", "children": children or {}}
    return dict(more, slot=slot, digest="ab" * 32)


def wanted(*users, **more):
    plain = dict.fromkeys(("lake_url", "lake_token", "lake_ca", "controller_ca"), "")
    plain.update(users=list(users), groups=[], memory_mib=1024, cpu_milli=1000, disk_mib=2048)
    plain.update(tls=True, token=SECRET, controller_url="https://c:1", lake_scopes=["write"], lake_token_seconds=3600)
    return dict(dict(plain, idle_seconds=3600, environments=[]), **more)


def limits(request):
    return [request["parameters"]["lab_user_%s" % key] for key in ("memory_mib", "cpu_milli", "disk_mib")]


def test_a_limit_is_the_users_else_the_groups_else_the_hubs():
    groups = [{"name": "many", "memory_mib": 4096, "cpu_milli": 2000}]
    found = lab_requests(
        instance(),
        dict(wanted({"name": "alice"}, {"name": "bob", "group": "many", "cpu_milli": 500}), groups=groups),
    )
    assert limits(found["alice"]) == [1024, 1000, 2048]
    assert limits(found["bob"]) == [4096, 500, 2048]
    assert found["bob"]["placement"] == {"node": "oak"}


def test_what_is_brought_back_is_one_users():
    back = {"user": "bob", "backup": "friday"}
    found = lab_requests(instance(), wanted({"name": "alice"}, {"name": "bob"}, backups=["friday"], restore=back))
    assert found["bob"]["parameters"]["lab_user_restore"] == {"backup": "friday"}
    assert "lab_user_restore" not in found["alice"]["parameters"]
    assert found["alice"]["parameters"]["lab_user_backups"] == ["friday"]


def test_environments_are_handed_on_by_the_sums_of_their_locks():
    lock = "a==1 # {{ x }} é\n"
    given = wanted({"name": "alice"}, environments=[{"name": "sky", "lock": lock}])
    assert lab_hub_files(instance(), given)["etc/environments/sky.txt"] == {"content": lock}
    digest = hashlib.sha256(lock.encode()).hexdigest()
    parameters = lab_requests(instance(), given)["alice"]["parameters"]
    assert parameters["lab_user_environments"] == [{"name": "sky", "slot": "s003", "sha256": digest}]
    without = lab_requests(instance(), wanted({"name": "alice"}))["alice"]["parameters"]
    assert "lab_user_environments" not in without


def test_environments_of_a_user_are_on_the_disk():
    disk = "/var/lib/clachan/mounts/s004"
    given = dict(wanted(), name="alice", secret="s" * 20, disk=disk, held={})
    files = lab_user_files(instance(), dict(given, environments=[{"name": "sky"}]))
    kernel = json.loads(files["etc/data/kernels/sky/kernel.json"]["content"])
    assert kernel["argv"][1:3] == ["--data=%d" % (768 << 20), disk + "/environments/sky/bin/python"]
    settings = json.loads(files["etc/jupyter/jupyter_server_config.json"]["content"])
    assert settings["KernelSpecManager"]["allowed_kernelspecs"] == ["science", "sky"]
    with pytest.raises(AnsibleFilterError, match=r"^lab_user_environments name: 'science', expected another name"):
        lab_user_files(instance(), dict(given, environments=[{"name": "science"}]))


@pytest.mark.parametrize(
    ("users", "more", "message"),
    [
        ([{"name": "../x"}], {}, "lab_users name: '../x', expected another name"),
        ([{"name": "bob"}, {"name": "bob"}], {}, "lab_users name: 'bob', expected another name"),
        ([{"name": "bob", "group": "few"}], {}, "lab_users bob: group 'few', expected one of lab_groups"),
        ([{"name": "bob", "memory_mib": 700}], {}, "lab_users bob: memory_mib 700, expected at least 768"),
        (
            [{"name": "bob"}],
            {"environments": [{"name": "../x", "lock": ""}]},
            "lab_environments name: '../x', expected another name",
        ),
        ([{"name": "bob"}], {"restore": {"user": "eve"}}, "lab_restore user: 'eve', expected one of lab_users"),
    ],
)
def test_what_cannot_be_is_refused(users, more, message):
    with pytest.raises(AnsibleFilterError) as error:
        lab_requests(instance(), wanted(*users, **more))
    assert str(error.value).startswith(message)


def test_secrets_of_a_hub_are_in_files_of_their_own():
    published = {"url": "http://127.9.0.20:20080", "secret": "of-the-launcher", "limits": "x", "backups": "{}"}
    children = {"alice": {"state": "started", "published": published}}
    given = dict(
        wanted({"name": "alice"}, {"name": "bob"}), lake_url="http://127.9.0.16:20000", lake_token="of-the-lake"
    )
    files = lab_hub_files(instance(children), given)
    assert json.loads(files["etc/users.json"]["content"]) == {
        "alice": {"url": "http://127.9.0.20:20080", "secret": "of-the-launcher", "limits": "x"},
        "bob": {},
    }
    assert files["etc/proxy-token"]["content"] == derived(SECRET, "proxy") + "\n"
    assert files["etc/proxy-token"] != files["etc/culler-token"]
    texts = {path: file.get("content", "") for path, file in files.items()}
    assert [path for path, text in texts.items() if "of-the-lake" in text] == ["etc/lake-token"]
    assert [path for path, text in texts.items() if SECRET in text] == []
    assert json.loads(texts["etc/proxy.json"])["key"] == SLOT + "/var/key.pem"


def test_a_kernel_of_a_user_leaves_room_for_the_server():
    given = dict(wanted(), name="alice", secret="s" * 20, disk="/var/lib/clachan/mounts/s003", held={})
    files = lab_user_files(instance(), dict(given, lake_url="http://127.9.0.16:20000"))
    kernel = json.loads(files["etc/data/kernels/science/kernel.json"]["content"])
    assert kernel["argv"][1] == "--data=%d" % (768 << 20)
    assert kernel["env"]["CLACHAN_LAKE_TOKEN_FILE"] == SLOT + "/var/lake-token"
    assert kernel["env"]["MPLCONFIGDIR"] == HOME + "/.cache/matplotlib"
    launcher = json.loads(files["etc/launcher.json"]["content"])
    assert (launcher["home"], launcher["platform"]) == (HOME, "/var/lib/clachan")
    with pytest.raises(AnsibleFilterError, match=r"^lab_user_name: '\.\./etc', expected a name"):
        lab_user_files(instance(), dict(given, name="../etc"))

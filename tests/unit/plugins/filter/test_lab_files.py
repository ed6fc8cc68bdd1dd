# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.clachan.platform.plugins.filter.lab_files import lab_files

SLOT = "/var/lib/clachan/slots/s003"


def instance(directory=SLOT, cpu_milli=500):
    slot = {
        "directory": directory,
        "addresses": {"ipv4": "127.9.0.19"},
        "ports": {"first": 20060},
        "limits": {"cpu_milli": cpu_milli},
    }
    return {"slot": slot, "digest": "ab" * 32}


def wanted(**more):
    plain = dict.fromkeys(("lake_url", "lake_token", "lake_ca", "certificate"), "")
    return dict(plain, token="t" * 20, memory_mib=512, environments=[], lake_token_seconds=0, **more)


def content(files, path):
    return json.loads(files[path]["content"])


def test_the_server_listens_at_the_slot_only():
    files = lab_files(instance(), wanted())
    settings = content(files, "etc/jupyter/jupyter_server_config.json")
    assert (settings["ServerApp"]["ip"], settings["ServerApp"]["port"]) == ("127.9.0.19", 20060)
    assert settings["ServerApp"]["root_dir"] == SLOT + "/var/home"
    assert settings["KernelManager"] == {"transport": "ipc"}
    assert files["etc/token"]["content"] == "t" * 20, "Jupyter reads the file as it is, a newline too"


def test_behind_tls_its_key_is_the_slots_own():
    for pem in ("", "PEM\n"):
        files = lab_files(instance(), dict(wanted(), certificate=pem))
        settings = content(files, "etc/jupyter/jupyter_server_config.json")
        found = {key: settings["ServerApp"].get(key) for key in ("certfile", "keyfile")}
        there = {"certfile": SLOT + "/etc/certificate.pem", "keyfile": SLOT + "/var/key.pem"}
        assert found == (there if pem else dict.fromkeys(there))
        assert files["etc/certificate.pem"] == {"content": pem}


def test_a_path_that_is_too_long_for_sockets():
    """Of 107 bytes /var/run/kernel-<36>-ipc-1 needs 58."""
    for length, transport in ((49, "ipc"), (50, "tcp")):
        files = lab_files(instance("/" + "h" * (length - 1)), wanted())
        assert content(files, "etc/jupyter/jupyter_server_config.json")["KernelManager"]["transport"] == transport


def test_a_kernel_has_its_limit_and_its_lake():
    found = lab_files(
        instance(cpu_milli=2500),
        dict(wanted(), lake_url="http://127.9.0.16:20000", lake_token="secret-of-the-lake"),
    )
    kernel = content(found, "etc/data/kernels/science/kernel.json")
    assert kernel["argv"][:3] == [
        "/usr/bin/prlimit",
        "--data=536870912",
        "/var/lib/clachan/envs/science/bin/python",
    ]
    assert kernel["env"] == {
        "CLACHAN_LAKE": "http://127.9.0.16:20000",
        "CLACHAN_LAKE_TOKEN_FILE": SLOT + "/etc/lake-token",
        "MPLCONFIGDIR": SLOT + "/var/cache/matplotlib",
        "OMP_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "2",
        "PATH": "/var/lib/clachan/envs/science/bin:/usr/local/bin:/usr/bin:/bin",
    }
    assert found["etc/lake-token"]["content"] == "secret-of-the-lake\n"
    assert "secret-of-the-lake" not in json.dumps(
        {key: value for key, value in found.items() if key != "etc/lake-token"}
    )


def test_a_token_that_is_renewed_is_not_the_given_one():
    given = dict(wanted(), lake_url="http://127.9.0.16:20000", lake_token="secret-of-the-lake", lake_token_seconds=60)
    files = lab_files(instance(), given)
    assert "etc/lake-token" not in files
    assert "secret-of-the-lake" not in json.dumps(files)


def test_environments_have_their_lock_and_their_kernel():
    files = lab_files(instance(), dict(wanted(), environments=[{"name": "sky", "lock": "a==1 # {{ x }}\n"}]))
    assert files["etc/environments/sky.txt"]["content"] == "a==1 # {{ x }}\n"
    kernel = content(files, "etc/data/kernels/sky/kernel.json")
    assert kernel["argv"][2] == SLOT + "/var/environments/sky/bin/python"
    assert content(files, "etc/jupyter/jupyter_server_config.json")["KernelSpecManager"]["allowed_kernelspecs"] == [
        "science",
        "sky",
    ]


@pytest.mark.parametrize("names", [["science"], ["../x"], ["Sky"], [""], ["sky", "sky"]])
def test_a_name_that_cannot_be(names):
    environments = [{"name": name, "lock": ""} for name in names]
    with pytest.raises(AnsibleFilterError, match=r"^lab_environments name: '.*', expected another name \("):
        lab_files(instance(), dict(wanted(), environments=environments))

"""VMs: passes over 20 that did not change, meters of 50, and a guest's disks beside the host's own file.

`bench_vm.py passes`, `meters`, `disks` runs one part; as root. The VMs of the first two are as small as they can be: a
boot sector that halts. That of the third is a real one, emulated where KVM does not work, and then the processor of the
emulation is what is measured: ratios of a host with KVM are others.
"""

import json
import os
import pathlib
import pwd
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from measured import BIN, ROOT, header, row

sys.path.insert(0, str(ROOT / "tests"))
from testbed import images
from testbed.libvirt_guest import LibvirtGuest
from testbed.libvirtd import Libvirtd, obstacle

HALT = b"\xfa\xf4\xeb\xfc".ljust(510, b"\0") + b"\x55\xaa"
USER = "nobody"
MIB = 1 << 20
LOOK = """
import json, sys, time, types
import libvirt
from ansible_collections.clachan.platform.plugins.module_utils import vm_meters, vm_record
from ansible_collections.clachan.platform.plugins.modules import vm
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
calls = []
OWN = ("name", "UUIDString", "ID", "connect", "c_pointer")  # answered by the binding, without libvirtd
def counting(kind):
    for name, method in list(vars(kind).items()):
        if isinstance(method, types.FunctionType) and not name.startswith("_") and name not in OWN:
            def counted(*given, __method=method, **more):
                calls.append(1)
                return __method(*given, **more)
            setattr(kind, name, counted)
counting(libvirt.virConnect)
counting(libvirt.virDomain)
machines = [ArgumentSpecValidator(vm.OPTIONS).validate(one).validated_parameters for one in json.load(sys.stdin)]
def timed(work):
    calls.clear()
    began = time.monotonic()
    found = work()
    return time.monotonic() - began, len(calls), found
known = timed(lambda: [vm_record.unchanged(one) for one in machines])
full = timed(lambda: [vm.Vm(one, True).run() for one in machines])
connection = libvirt.open("qemu:///system")
meters = [timed(lambda: vm_meters.read_all(libvirt, connection)) for _ in range(6)]
print(json.dumps({
    "known": known[:2], "all_known": all(known[2]), "full": full[:2],
    "changed": sum(one["changed"] for one in full[2]),
    "meters": [one[0] for one in meters], "meters_calls": meters[-1][1], "metered": len(meters[-1][2]),
}))
"""


@contextmanager
def a_node() -> Iterator[tuple[pathlib.Path, Libvirtd, pathlib.Path]]:
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"clachan-bench-vm-{os.getpid()}-", dir="/var/tmp"))
    folder.chmod(0o711)
    platform = folder / "collections" / "ansible_collections" / "clachan" / "platform"
    platform.mkdir(parents=True)
    for part in ("meta", "plugins"):
        (platform / part).symlink_to(ROOT / part)
    try:
        with Libvirtd(folder / "libvirtd") as libvirtd:
            yield folder, libvirtd, folder / "collections"
    finally:
        shutil.rmtree(folder)


def ok(libvirtd: Libvirtd, collections: pathlib.Path, name: str, options: dict[str, Any]) -> dict[str, Any]:
    result = libvirtd.module(name, options, collections)
    assert not result.get("failed"), result["msg"]
    return result


def own(path: pathlib.Path) -> pathlib.Path:
    entry = pwd.getpwnam(USER)
    os.chown(path, entry.pw_uid, entry.pw_gid)
    return path


def halted(folder: pathlib.Path, number: int) -> dict[str, Any]:
    disk = folder / f"disk{number}.raw"
    disk.write_bytes(HALT)
    os.truncate(disk, MIB)
    return {
        "name": f"bench.halted.n{number}",
        "uuid": str(uuid.uuid4()),
        "user": USER,
        "accelerator": "qemu",
        "memory": {"mib": 16},
        "disks": [{"path": str(own(disk)), "format": "raw"}],
        "stop_seconds": 0,
    }


def playbook(
    folder: pathlib.Path, libvirtd: Libvirtd, collections: pathlib.Path, machines: list[dict[str, Any]]
) -> float:
    """Seconds of one run of Ansible with a host for each VM."""
    hosts = {one["name"]: {"vm_options": one} for one in machines}
    (folder / "ansible.cfg").write_text("[defaults]\n")
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts, "vars": {"ansible_connection": "local"}}}))
    task = {"name": "VM", "clachan.platform.vm": "{{ vm_options }}"}
    (folder / "book.json").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [task]}]))
    environment = {
        "ANSIBLE_COLLECTIONS_PATH": str(collections),
        "ANSIBLE_HOME": str(folder / "ansible"),
        "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
        "ANSIBLE_INJECT_FACT_VARS": "false",
        "ANSIBLE_CONFIG": str(folder / "ansible.cfg"),
    }
    began = time.monotonic()
    done = libvirtd.execute(
        [str(BIN / "ansible-playbook"), "-i", str(folder / "hosts.json"), str(folder / "book.json")],
        check=False,
        **environment,
    )
    assert not done.returncode, done.stdout + done.stderr
    return time.monotonic() - began


def passes_and_meters(passes: bool, meters: bool) -> None:
    with a_node() as (folder, libvirtd, collections):
        machines = [halted(folder, number) for number in range(20)]
        for one in machines:
            ok(libvirtd, collections, "vm", one)
        if passes:
            playbook(folder, libvirtd, collections, machines)  # makes the records
            again = min(playbook(folder, libvirtd, collections, machines) for _ in range(3))
            one_alone = min(playbook(folder, libvirtd, collections, machines[:1]) for _ in range(3))
        if meters:
            for number in range(20, 50):
                machines.append(halted(folder, number))
                ok(libvirtd, collections, "vm", machines[-1])
        text = libvirtd.execute(
            ["/usr/bin/python3", "-c", LOOK], text=json.dumps(machines[:20]), **python_path(collections)
        ).stdout
        found = json.loads(text)
        assert found["changed"] == 0
        if passes:
            assert found["all_known"]
            seconds, calls = found["known"]
            row(
                "pass over 20 VMs without change", f"{seconds * 1e3:.1f} ms", f"{calls} calls", "", "< 500 ms, constant"
            )
            seconds, calls = found["full"]
            row("the same when every one is looked at", f"{seconds * 1e3:.0f} ms", f"{calls} calls")
            row("the same as 20 hosts of a playbook", f"{again:.2f} s", f"1 host: {one_alone:.2f} s")
        if meters:
            later = statistics.median(found["meters"][1:])
            first = found["meters"][0]
            calls = found["meters_calls"]
            row(f"meters of {found['metered']} VMs", f"{later * 1e3:.0f} ms", f"{calls} call", "", "< 100 ms, 1 call")
            row("the first time", f"{first * 1e3:.0f} ms")
        for one in machines:
            ok(libvirtd, collections, "vm", one | {"state": "absent"})


def python_path(collections: pathlib.Path) -> dict[str, str]:
    library = next(path for path in sys.path if (pathlib.Path(path) / "ansible" / "module_utils").is_dir())
    return {"PYTHONPATH": f"{collections}:{library}"}


SIZE = 96
DISKS: dict[str, dict[str, str]] = {
    "raw": {"format": "raw"},
    "rawwb": {"format": "raw", "cache": "writeback", "io": "threads"},
    "rawuring": {"format": "raw", "cache": "none", "io": "io_uring"},
    "qcow2": {"format": "qcow2"},
    "qcow2wb": {"format": "qcow2", "cache": "writeback", "io": "threads"},
    "block": {"format": "raw"},
}
# bytes that are not zero: zeros would be given back to the host instead of being written
TESTS = {
    "write": "dd if={source} of={disk} bs=1M count=64 oflag=direct conv=fsync,notrunc",
    "read": "dd if={disk} of=/dev/null bs=1M count=64 iflag=direct",
    "4k synced": "dd if={source} of={disk} bs=4k count=400 oflag=direct,dsync conv=notrunc",
}
SOURCE = f"/dev/shm/clachan-bench-{os.getpid()}"


def rate(said: str) -> float:
    """MB/s out of what dd says last."""
    size, seconds = (
        said.strip().splitlines()[-1].split(", ")[0].split()[0],
        said.strip().splitlines()[-1].split(", ")[-2],
    )
    return int(size) / 1e6 / float(seconds.split()[0])


def on_the_host(path: str) -> dict[str, float]:
    return {name: best(command.format(source=SOURCE, disk=path), in_a_shell) for name, command in TESTS.items()}


def in_a_shell(command: str) -> str:
    return subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True).stdout


def best(command: str, execute: Callable[[str], str]) -> float:
    return max(rate(execute(command + " 2>&1")) for _ in range(3))


def disks() -> None:
    with a_node() as (folder, libvirtd, collections):
        image = images.node_image(folder / "image", agent=False)
        guest = LibvirtGuest(libvirtd, folder)
        guest.make_link()
        var = own(folder)
        system = folder / "system.qcow2"
        ok(libvirtd, collections, "volume", {"path": str(system), "kind": "system", "image": str(image), "owner": USER})
        wanted = [{"path": str(system), "backing": str(image)}]
        file = folder / "loop.img"
        in_a_shell(f"fallocate -l {SIZE}M {file}")
        loop = subprocess.run(
            ["losetup", "--direct-io=on", "-f", "--show", file], check=True, capture_output=True, text=True
        )
        device = loop.stdout.strip()
        rights = os.stat(device)
        try:
            for name, about in DISKS.items():
                path = device if name == "block" else str(var / f"{name}.img")
                volume = {"path": path, "owner": USER, "format": about["format"], "size": f"{SIZE}MiB"}
                ok(libvirtd, collections, "volume", volume | ({"kind": "block"} if name == "block" else {}))
                wanted.append(about | {"path": path, "serial": name})
            os.chown(folder, 0, 0)
            seed = guest.seed(folder / "seed.iso", folder / "host_key", USER)
            key = ok(libvirtd, collections, "seed", seed)["host_public_key"]
            vm = halted(folder, 0) | {
                "disks": wanted,
                "seed": seed["path"],
                "memory": {"mib": 384},
                "accelerator": "auto",
            }
            vm |= {"name": "bench.disks.guest", "interfaces": [{"device": guest.tap, "mac": guest.mac}]}
            made = ok(libvirtd, collections, "vm", vm)
            guest.wait(key)
            print(f"\nguest's disks beside the host's file ({made['accelerator']}), MB/s; {made['warning'] or ''}")
            host_file = folder / "host.img"
            in_a_shell(f"fallocate -l {SIZE}M {host_file}")
            in_a_shell(f"head -c 64M /dev/urandom > {SOURCE}")
            peer = on_the_host(str(host_file))
            pathlib.Path(SOURCE).unlink()
            guest.ssh(f"head -c 64M /dev/urandom > {SOURCE}")
            for name, about in DISKS.items():
                settings = f"{about.get('cache', 'default')}/{about.get('io', 'default')}"
                for test, command in TESTS.items():
                    place = f"/dev/disk/by-id/virtio-{name}"
                    ours = best(command.format(source=SOURCE, disk=place), guest.ssh)
                    row(f"{name} {settings}: {test}", f"{ours:.1f}", f"{peer[test]:.1f}", f"{ours / peer[test]:.2f}")
            ok(libvirtd, collections, "vm", vm | {"state": "absent"})
        finally:
            os.chown(device, rights.st_uid, rights.st_gid)
            os.chmod(device, rights.st_mode & 0o777)
            subprocess.run(["losetup", "-d", device], check=True)


def main() -> None:
    problem = obstacle()
    if problem:
        print(f"this machine cannot: {problem}")
        return
    parts = sys.argv[1:] or ["passes", "meters", "disks"]
    header("host")
    if {"passes", "meters"} & set(parts):
        passes_and_meters("passes" in parts, "meters" in parts)
    if "disks" in parts:
        disks()


if __name__ == "__main__":
    main()

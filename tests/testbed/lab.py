#!/usr/bin/python3
"""Machines for tests: `lab.py probe | up NAME... | exec NAME COMMAND | reboot | cut | start | stop | list | down`.

`lab.py --lab demo up c1 n1 n2 --bind /srv/wheels=/tmp/wheels` makes three machines that reach each other by name;
`lab.py --lab demo exec c1 hostname` runs a command in one; `lab.py --lab demo down` leaves nothing.
"""

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from testbed import images, network
from testbed.base import VM_NODE_PACKAGES, base
from testbed.host import HERE, LabError, Process, install_packages, locked, run, spawn, testbed
from testbed.index import PORT
from testbed.machine import Machine
from testbed.probe import obstacle
from testbed.wheelhouse import wheelhouse

NAME = re.compile(r"[a-z][a-z0-9]{0,11}")


class Lab:
    """A bridge in a namespace and the machines on it. Usable as a context manager that ends with `down`."""

    def __init__(
        self,
        name: str = "clachan",
        lowers: Sequence[Path] = (),
        wheels: Path | None = None,
        packages: Sequence[str] = (),
    ) -> None:
        """`lowers`: layers to start machines from, uppermost first; the base is always beneath them.

        `wheels`: what the machines' pip installs from, served inside the lab. `packages`: what the base has besides
        its own Debian packages.
        """
        if not NAME.fullmatch(name):
            raise LabError(f"lab {name!r}, expected {NAME.pattern}")
        self.namespace = f"lab-{name}"
        self.folder = testbed() / "labs" / name
        self.lowers = list(lowers)
        self.wheels = wheels
        self.packages = packages

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def key(self) -> Path:
        return self.folder / "id"

    @property
    def ssh_config(self) -> Path:
        """For `ssh -F`: every machine by name."""
        return self.folder / "ssh_config"

    def machines(self) -> dict[str, Machine]:
        found = [Machine.load(path.parent) for path in sorted(self.folder.glob("machines/*/machine.json"))]
        return {machine.name: machine for machine in found}

    def machine(self, name: str) -> Machine:
        try:
            return self.machines()[name]
        except KeyError:
            known = ", ".join(self.machines()) or "none"
            raise LabError(f"machine {name}: not in this lab, expected one of: {known}") from None

    def up(self, names: Sequence[str], binds: dict[str, str] | None = None) -> list[Machine]:
        """Make and boot machines that are not there yet. On failure the others stay; `down` ends all."""
        lowers = [str(folder) for folder in (*self.lowers, base(self.packages))]
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / "lock"):
            self._make_network()
            self._serve_wheels()
            new = [self._make(name, lowers, binds or {}) for name in names if name not in self.machines()]
            self._write_names()
            for machine in new:
                machine.start()
        return [self.machine(name) for name in names]

    def _make_network(self) -> None:
        if not self.key.exists():
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "testbed", "-f", self.key])
        if not (network.NAMESPACES / self.namespace).exists():
            network.make_bridge(self.namespace)

    def _serve_wheels(self) -> None:
        if self.wheels is None or self._index() is not None:
            return
        command = ["nsenter", f"--net={network.NAMESPACES / self.namespace}", sys.executable, str(HERE / "index.py")]
        command += [network.gateway(), str(PORT), str(self.wheels)]
        index = spawn(command, self.folder / "index.log")
        (self.folder / "index.json").write_text(json.dumps(asdict(index)))

    def _index(self) -> Process | None:
        file = self.folder / "index.json"
        return Process(**json.loads(file.read_text())) if file.exists() else None

    def _environment(self) -> dict[str, str]:
        if self._index() is None:
            return {}
        place = f"http://{network.gateway()}:{PORT}/simple"
        return {"PIP_INDEX_URL": place, "PIP_TRUSTED_HOST": network.gateway(), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def _make(self, name: str, lowers: list[str], binds: dict[str, str]) -> Machine:
        if not NAME.fullmatch(name):
            raise LabError(f"machine {name!r}, expected {NAME.pattern}")
        taken = {machine.address for machine in self.machines().values()}
        address = next(free for i in range(11, 250) if (free := f"{network.SUBNET}.{i}") not in taken)
        folder = str(self.folder / "machines" / name)
        machine = Machine(name, self.namespace, address, folder, lowers, binds, self._environment())
        machine.make(self.key.with_suffix(".pub"))
        return machine

    def _write_names(self) -> None:
        """Everybody's /etc/hosts, and what ssh on the host needs to reach the machines."""
        machines = self.machines().values()
        known = "".join(f"{machine.address} {machine.name}\n" for machine in machines)
        for machine in machines:
            (machine.root / "etc/hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{known}")
        hosts = self.folder / "known_hosts"
        hosts.write_text("".join(f"{machine.host_key()}\n" for machine in machines))
        common = (
            f"Host *\n  User root\n  IdentityFile {self.key}\n  IdentitiesOnly yes\n  StrictHostKeyChecking yes\n"
            f"  UserKnownHostsFile {hosts}\n  GlobalKnownHostsFile /dev/null\n  LogLevel ERROR\n"
            f"  ProxyCommand nsenter --net={network.NAMESPACES / self.namespace} socat - TCP:%h:%p\n"
        )
        each = "".join(f"Host {machine.name}\n  HostName {machine.address}\n" for machine in machines)
        self.ssh_config.write_text(each + common)

    def down(self, names: Sequence[str] = ()) -> None:
        """End machines and leave nothing of them; without names all, and the lab's network and folder."""
        if not self.folder.exists():
            return
        with locked(self.folder / "lock"):
            for machine in self.machines().values():
                if not names or machine.name in names:
                    machine.remove()
            if names:
                self._write_names()
            else:
                if index := self._index():
                    index.signal(signal.SIGTERM)
                network.remove(self.namespace)
                shutil.rmtree(self.folder)


def layer(
    key: str, make: Callable[[Machine], None], binds: dict[str, str] | None = None, wheels: Path | None = None
) -> Path:
    """The layer of that name: what `make` wrote in a machine over the base; made once and kept.

    `key` names all that decides the content (take a digest of it): a layer is never made anew under its name.
    """
    folder = testbed() / f"layer-{key}"
    with locked(testbed() / f"layer-{key.partition('-')[0]}.lock"):
        if not folder.is_dir():
            with Lab(f"l{os.getpid()}", wheels=wheels) as lab:
                (machine,) = lab.up(["maker"], binds)
                make(machine)
                machine.stop()
                machine.unmount()
                _forget_identity(machine.path / "up")
                (machine.path / "up").rename(folder)
    return folder


def _forget_identity(root: Path) -> None:
    """Take out of a machine's writes what belongs to that machine alone."""
    for pattern in (
        "etc/machine-id",
        "etc/hostname",
        "etc/hosts",
        "etc/ssh/ssh_host_*",
        "root/.ssh",
        "run",
        "tmp",
        "var/log",
    ):
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


IMAGES = "/srv/images"
"""Where machines with `--guests` have the disk of an image."""
POWER = {
    "reboot": "shut down in order and boot again",
    "cut": "take the power away; the disk stays",
    "start": "power on",
    "stop": "shut down in order",
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return int(options.do(options) or 0)
    except LabError as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lab", default="clachan", help="which lab; labs do not see each other (default: %(default)s)")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, do: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text)
        added.set_defaults(do=do, verb=name)
        return added

    verb("install", lambda _: install_packages(), "install the Debian packages that this needs")
    verb("probe", _probe, "say whether this host can run the machines; exit 1 and the reason when not")
    verb("wheels", lambda _: print(wheelhouse()), "fetch the wheels of the lock files; print their folder")
    verb("base", lambda _: print(base()), "make the base if it is not there; print its folder")
    verb("image", lambda _: print(_image()), "build the image of nodes if it is not there; print the file of its disk")
    up = verb("up", _up, "make and boot machines")
    up.add_argument("names", nargs="+")
    up.add_argument("--bind", action="append", default=[], metavar="INSIDE=HOST", help="a folder to show, read-only")
    up.add_argument("--wheels", action="store_true", help="serve the wheelhouse to the machines' pip")
    up.add_argument("--package", action="append", default=[], help="a Debian package that the base has besides")
    up.add_argument("--guests", action="store_true", help=f"what nodes of VMs have, and an image's disk in {IMAGES}")
    up.add_argument("--layer", action="append", default=[], type=Path, help="folder of a layer to start from")
    execute = verb("exec", _exec, "run a command in a machine, as root")
    execute.add_argument("name")
    execute.add_argument("command", nargs=argparse.REMAINDER)
    for name, text in POWER.items():
        verb(name, _power, text).add_argument("name")
    verb("list", _list, "the machines of the lab")
    down = verb("down", lambda options: Lab(options.lab).down(options.names), "end machines, all when none is named")
    down.add_argument("names", nargs="*")
    return parser


def _probe(_: argparse.Namespace) -> int:
    reason = obstacle()
    print(reason or "this host can run the machines")
    return 1 if reason else 0


def _up(options: argparse.Namespace) -> None:
    binds = dict(text.split("=", 1) for text in options.bind)
    wheels = wheelhouse() if options.wheels else None
    packages = {*options.package, *(VM_NODE_PACKAGES if options.guests else ())}
    lab = Lab(options.lab, options.layer, wheels, sorted(packages))
    if options.guests:
        binds[IMAGES] = str(_image_of(lab))
    for machine in lab.up(options.names, binds):
        print(machine.name, machine.address)


def _image_of(lab: Lab) -> Path:
    """A folder of the lab with the image's disk: a link of its own, as the kept store drops what is outdated."""
    folder = lab.folder / "guests"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "disk.qcow2").exists():
        os.link(_image(), folder / "disk.qcow2")
    return folder


def _image() -> Path:
    with tempfile.TemporaryDirectory(dir=testbed()) as scratch:
        return images.node_image(Path(scratch))


def _exec(options: argparse.Namespace) -> int:
    command = Lab(options.lab).machine(options.name).enter(options.command)
    os.execvp(command[0], command)


def _power(options: argparse.Namespace) -> None:
    getattr(Lab(options.lab).machine(options.name), options.verb)()


def _list(options: argparse.Namespace) -> None:
    for machine in Lab(options.lab).machines().values():
        print(machine.name, machine.address, "running" if machine.running else "off")


if __name__ == "__main__":
    sys.exit(main())

"""The network of a lab: a namespace with a bridge, and one for each machine. Nothing of it leaves the host."""

from pathlib import Path

from testbed.host import run

SUBNET = "10.99.1"
NAMESPACES = Path("/run/netns")


def gateway() -> str:
    return f"{SUBNET}.1"


def make_bridge(namespace: str) -> None:
    run(["ip", "netns", "add", namespace])
    _ip(namespace, "link set lo up")
    _ip(namespace, "link add br0 type bridge")
    _ip(namespace, f"address add {gateway()}/24 dev br0")
    _ip(namespace, "link set br0 up")


def attach(bridge: str, namespace: str, name: str, address: str) -> None:
    """Make a machine's namespace with `host0` at the address, plugged into the lab's bridge."""
    run(["ip", "netns", "add", namespace])
    _ip(bridge, f"link add v-{name} type veth peer name host0 netns {namespace}")
    _ip(bridge, f"link set v-{name} master br0 up")
    _ip(namespace, "link set lo up")
    _ip(namespace, f"address add {address}/24 dev host0")
    _ip(namespace, "link set host0 up")
    _ip(namespace, f"route add default via {gateway()}")


def remove(namespace: str) -> None:
    if (NAMESPACES / namespace).exists():
        run(["ip", "netns", "delete", namespace])


def plug(bridge: str, name: str, *, connected: bool) -> None:
    """Pull or plug a machine's cable at the bridge."""
    _ip(bridge, f"link set v-{name} {'up' if connected else 'down'}")


def _ip(namespace: str, words: str) -> None:
    run(["ip", "-n", namespace, *words.split()])

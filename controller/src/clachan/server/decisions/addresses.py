"""The address plan of a platform: nodes and slots have addresses that never change.

A platform has one ULA /48 and one IPv4 /8; a node has a /64 and a /20 of them; a slot has an address of each. A node
has a number (0 to 4094), unique in the platform. Its /20 is `(offset + number) mod 4095 + 1` of the /8, its /64 is
`number + 1` of the /48; the first of both stay the platform's own (127.0.0.1 is in it). Slot `i` has the address
`base + 16 + i` in both, and 20 ports from `20000 + 20 * i`, so slots inside a VM, which share its address, still
differ by port.

A node that is a VM has no network of its own but the address of the slot that the VM has on its host. Its number says
which: from 4095 on, `vm_number`. A VM is reached from other machines, so its address is of the private plan whatever
the platform's is.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Literal

from clachan.contract.inventory import Limits, NodeAddresses, Ports, Slot, SlotAddresses
from clachan.contract.software import Capacity

NODES = 4095
SLOTS = 2276
"""As many as have 20 ports of their own below 65536."""
FIRST_PORT = 20000
PORTS = 20
FIRST_ADDRESS = 16
PREFIX_BYTES = 5

Plan = Literal["loopback", "private"]
_FIRST_IPV4 = {"loopback": IPv4Address("127.0.0.0"), "private": IPv4Address("10.0.0.0")}
_SLOTS_BITS = 12  # a /20
_SUBNET_BITS = 64


class AddressError(ValueError):
    """A number that the plan has no place for."""


def vm_number(host: int, index: int) -> int:
    """The number of the node that the VM in slot `index` of the host with that number is; no other node has it.

    Raises AddressError when the host is a VM itself, or beyond `SLOTS`.
    """
    if not 0 <= host < NODES:
        raise AddressError(f"number of a VM's host: {host}, expected 0 to {NODES - 1}: a VM has no VMs")
    _check_index(index)
    return NODES + host * SLOTS + index


def ula_prefix(random: bytes) -> str:
    """The platform's ULA /48 (RFC 4193) from 5 random bytes; raises AddressError for another length."""
    if len(random) != PREFIX_BYTES:
        raise AddressError(f"random bytes of the ULA prefix: {len(random)}, expected {PREFIX_BYTES}")
    return str(IPv6Network((bytes([0xFD]) + random + bytes(10), 48)))


def number_at(offset: int, address: IPv4Address) -> int | None:
    """The number that a node has whose /20 the address is in; None outside the plan."""
    index = (int(address) - int(_FIRST_IPV4["private"])) >> _SLOTS_BITS
    return (index - 1 - offset) % NODES if 1 <= index <= NODES else None


def node_addresses(prefix: str, plan: Plan, offset: int, number: int, reach: str | None = None) -> NodeAddresses:
    """The /20 and the /64 of the node with this number, or the one address of a VM; raises AddressError beyond.

    `offset`: the platform's own, any number >= 0, so that two platforms on one machine's loopback rarely meet.
    """
    if not 0 <= number < NODES + NODES * SLOTS:
        raise AddressError(f"node number: {number}, expected one of {NODES} nodes or of their slots")
    if number >= NODES:
        host, slot_index = divmod(number - NODES, SLOTS)
        own = slot_addresses(node_addresses(prefix, "private", offset, host), slot_index)
        return NodeAddresses(ipv4=f"{own.ipv4}/32", ipv6=f"{own.ipv6}/128", reach=reach)
    index = (offset + number) % NODES + 1
    ipv4 = IPv4Network((_FIRST_IPV4[plan] + (index << _SLOTS_BITS), 32 - _SLOTS_BITS))
    ipv6 = IPv6Network((IPv6Network(prefix).network_address + ((number + 1) << _SUBNET_BITS), 128 - _SUBNET_BITS))
    return NodeAddresses(ipv4=str(ipv4), ipv6=str(ipv6), reach=reach)


def check_slots(count: int) -> None:
    """Raises AddressError when a node cannot have that many slots."""
    if not 0 <= count <= SLOTS:
        raise AddressError(f"slots of a node: {count}, expected 0 to {SLOTS}: each has {PORTS} ports of its own")


def slot_name(index: int) -> str:
    """`s000`; raises AddressError beyond `SLOTS`."""
    _check_index(index)
    return f"s{index:03d}"


def slot_user(index: int) -> str:
    """The unix user of a slot on a node in root mode; raises AddressError beyond `SLOTS`."""
    _check_index(index)
    return f"clachan_{index:03d}"


def slot_ports(index: int) -> Ports:
    """The ports of a slot; raises AddressError beyond `SLOTS`."""
    _check_index(index)
    return Ports(first=FIRST_PORT + PORTS * index, count=PORTS)


def slot_addresses(node: NodeAddresses, index: int) -> SlotAddresses:
    """The addresses of slot `index` of the node that has these networks; raises AddressError beyond `SLOTS`."""
    _check_index(index)
    networks = IPv4Network(node.ipv4), IPv6Network(node.ipv6)
    place = FIRST_ADDRESS + index if networks[0].num_addresses > 1 else 0
    ipv4, ipv6 = (network.network_address + place for network in networks)
    return SlotAddresses(ipv4=str(ipv4), ipv6=str(ipv6))


def slot(node: NodeAddresses, index: int, user: str, slots_directory: str, capacity: Capacity) -> Slot:
    """The whole slot; raises AddressError beyond `SLOTS`."""
    name = slot_name(index)
    return Slot(
        name=name,
        index=index,
        user=user,
        directory=f"{slots_directory}/{name}",
        addresses=slot_addresses(node, index),
        ports=slot_ports(index),
        limits=Limits(memory_mib=capacity.memory_mib, tasks=capacity.tasks, cpu_milli=capacity.cpu_milli),
    )


def _check_index(index: int) -> None:
    if not 0 <= index < SLOTS:
        raise AddressError(f"slot index: {index}, expected 0 to {SLOTS - 1}")

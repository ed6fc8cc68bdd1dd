from ipaddress import ip_address, ip_network

import pytest
from clachan.contract.software import Capacity
from clachan.server.decisions import addresses
from hypothesis import given
from hypothesis import strategies as st

PREFIX = addresses.ula_prefix(bytes.fromhex("0102030405"))


def test_prefix_is_a_unique_local_48():
    assert PREFIX == "fd01:203:405::/48"
    with pytest.raises(addresses.AddressError, match="random bytes of the ULA prefix: 4, expected 5"):
        addresses.ula_prefix(b"1234")


def test_first_node_and_slot():
    node = addresses.node_addresses(PREFIX, "loopback", 0, 0, reach="10.9.9.9")
    assert node.model_dump() == {
        "ipv4": "127.0.16.0/20",
        "ipv6": "fd01:203:405:1::/64",
        "reach": "10.9.9.9",
        "links": [],
    }
    slot = addresses.slot(node, 3, user="clachan_003", slots_directory="/srv/slots", capacity=Capacity(memory_mib=7))
    assert slot.model_dump() == {
        "name": "s003",
        "index": 3,
        "user": "clachan_003",
        "directory": "/srv/slots/s003",
        "addresses": {"ipv4": "127.0.16.19", "ipv6": "fd01:203:405:1::13"},
        "ports": {"first": 20060, "count": 20},
        "limits": {"memory_mib": 7, "tasks": 64, "cpu_milli": 50},
    }


@pytest.mark.parametrize("plan", ["loopback", "private"])
def test_a_vm_has_the_address_of_its_slot_and_its_slots_share_it(plan):
    host = addresses.node_addresses(PREFIX, "private", 4, 7)
    own = addresses.slot_addresses(host, 3)
    vm = addresses.node_addresses(PREFIX, plan, 4, addresses.vm_number(7, 3), reach="10.9.9.9")
    assert (vm.ipv4, vm.ipv6, vm.reach) == (f"{own.ipv4}/32", f"{own.ipv6}/128", "10.9.9.9")
    slots = [addresses.slot(vm, index, user="u", slots_directory="/s", capacity=Capacity()) for index in (0, 1)]
    assert [slot.addresses for slot in slots] == [own, own]
    assert slots[0].ports.first + slots[0].ports.count == slots[1].ports.first


@given(offset=st.integers(0, 2**32), plan=st.sampled_from(["loopback", "private"]))
def test_all_nodes_have_networks_of_their_own(offset, plan):
    numbers = [0, 1, 2, 2047, addresses.NODES - 2, addresses.NODES - 1]
    nodes = [addresses.node_addresses(PREFIX, plan, offset, number) for number in numbers]
    assert len({node.ipv4 for node in nodes}) == len({node.ipv6 for node in nodes}) == len(numbers)
    for node in nodes:
        assert ip_network(node.ipv6).subnet_of(ip_network(PREFIX))
        assert ip_network(node.ipv4).subnet_of(ip_network("127.0.0.0/8" if plan == "loopback" else "10.0.0.0/8"))
        assert ip_address("127.0.0.1") not in ip_network(node.ipv4)


@given(offset=st.integers(0, 2**32), number=st.integers(0, addresses.NODES - 1), index=st.integers(0, 2**12 - 1))
def test_an_address_tells_the_number_of_its_node(offset, number, index):
    node = ip_network(addresses.node_addresses(PREFIX, "private", offset, number).ipv4)
    assert addresses.number_at(offset, node[index]) == number


@pytest.mark.parametrize("outside", ["9.255.255.255", "10.0.0.1", "10.0.15.255", "11.0.0.0", "192.168.0.1"])
def test_an_address_outside_the_plan_is_no_nodes(outside):
    assert addresses.number_at(4000, ip_address(outside)) is None


def test_every_number_of_a_plan_has_its_own_network():
    networks = {addresses.node_addresses(PREFIX, "loopback", 4000, n).ipv4 for n in range(addresses.NODES)}
    assert len(networks) == addresses.NODES


@given(index=st.integers(0, addresses.SLOTS - 1))
def test_a_slot_is_inside_its_node(index):
    node = addresses.node_addresses(PREFIX, "loopback", 5, 9)
    slot = addresses.slot(node, index, user="u", slots_directory="/s", capacity=Capacity())
    network = ip_network(node.ipv4)
    assert ip_address(slot.addresses.ipv4) in network
    assert ip_address(slot.addresses.ipv4) != network.broadcast_address
    assert ip_address(slot.addresses.ipv6) in ip_network(node.ipv6)
    assert slot.ports.first + slot.ports.count <= 65536


@pytest.mark.parametrize("index", [-1, addresses.SLOTS])
def test_slot_beyond_the_limit(index):
    with pytest.raises(addresses.AddressError, match=f"slot index: {index}, expected 0 to 2275"):
        addresses.slot_name(index)


@pytest.mark.parametrize("number", [-1, addresses.NODES * (addresses.SLOTS + 1)])
def test_node_beyond_the_limit(number):
    with pytest.raises(
        addresses.AddressError, match=f"node number: {number}, expected one of 4095 nodes or of their slots"
    ):
        addresses.node_addresses(PREFIX, "private", 0, number)


@given(
    one=st.tuples(st.integers(0, addresses.NODES - 1), st.integers(0, addresses.SLOTS - 1)),
    two=st.tuples(st.integers(0, addresses.NODES - 1), st.integers(0, addresses.SLOTS - 1)),
)
def test_a_vm_takes_no_number_of_a_node_or_of_another_vm(one, two):
    numbers = [addresses.vm_number(*where) for where in (one, two)]
    assert min(numbers) >= addresses.NODES
    assert (numbers[0] == numbers[1]) == (one == two)
    first, second = (addresses.node_addresses(PREFIX, "loopback", 9, number) for number in numbers)
    assert (first == second) == (one == two)


def test_a_vm_has_no_vms():
    number = addresses.vm_number(7, 3)
    with pytest.raises(
        addresses.AddressError, match=f"number of a VM's host: {number}, expected 0 to 4094: a VM has no VMs"
    ):
        addresses.vm_number(number, 0)


def test_number_of_slots():
    addresses.check_slots(addresses.SLOTS)
    with pytest.raises(addresses.AddressError, match="slots of a node: 4000, expected 0 to 2276"):
        addresses.check_slots(4000)

from dataclasses import replace

import pytest
from clachan.contract.api import Placement
from clachan.server.decisions.allocation import Demand, NodeSummary, Placed, Waiting, allocate
from hypothesis import given
from hypothesis import strategies as st

HERE = NodeSummary(
    name="here",
    owner=None,
    vm=None,
    state="active",
    mode="root",
    labels={"disk": "ssd"},
    slots=10,
    slots_used=0,
    free_slot=0,
    memory_mib=1000,
    memory_used=0,
    cpu_milli=1000,
    cpu_used=0,
    tenants=frozenset(),
    supply="present",
)
THERE = replace(HERE, name="there", labels={})
WEB = Demand("home.web", "acme.tools.web", "a" * 64, Placement(), memory_mib=64, cpu_milli=50)


def demand(**placement):
    return replace(WEB, placement=Placement(**placement))


def test_emptiest_node_then_name():
    assert allocate(WEB, [THERE, HERE]) == Placed("here", 0)
    assert allocate(WEB, [replace(HERE, slots_used=1, free_slot=1), THERE]) == Placed("there", 0)
    assert allocate(WEB, [replace(HERE, slots=1000, slots_used=20, free_slot=3), THERE]) == Placed("there", 0)


def test_online_first():
    assert allocate(WEB, [replace(HERE, online=False), replace(THERE, slots_used=9, free_slot=9)]).node == "there"
    assert allocate(WEB, [replace(HERE, online=False)]) == Placed("here", 0)


def test_spread_counts_siblings():
    crowded = replace(HERE, siblings=2)
    busy = replace(THERE, siblings=1, slots_used=9, free_slot=9)
    assert allocate(demand(spread=True), [crowded, busy]) == Placed("there", 9)
    assert allocate(demand(spread=False), [crowded, busy]) == Placed("here", 0)


def test_named_and_labelled():
    assert allocate(demand(node="there"), [HERE, THERE]) == Placed("there", 0)
    assert allocate(demand(labels={"disk": "ssd"}), [HERE, replace(THERE, labels={"disk": "hdd"})]).node == "here"


VM = replace(HERE, name="vm1", owner="home", vm="home.cluster.vm1", supply=None)


def test_inside_a_vm_its_supply_is_implied():
    assert allocate(demand(inside="home.cluster.vm1"), [HERE, VM]) == Placed("vm1", 0)
    failed = replace(VM, supply="failed")
    assert allocate(demand(inside="home.cluster.vm1"), [failed]) == Waiting(
        "the supply of acme.tools.web on vm1 failed: see `clachan supply`"
    )


def test_inside_a_vm_that_is_built_anew_waits_for_it():
    again = replace(VM, state="joining", mode=None)
    reason = "waiting for the VM home.cluster.vm1 to join as a node"
    assert allocate(demand(inside="home.cluster.vm1"), [HERE, again]) == Waiting(reason)
    foreign = replace(VM, owner="other")
    assert allocate(demand(inside="home.cluster.vm1"), [HERE, foreign]) == Waiting(reason)


def test_a_vm_makes_no_vms():
    wanted = replace(demand(inside="home.cluster.vm1"), makes_node=True, needs_root=True)
    reason = "acme.tools.web makes a VM and vm1 is one: place it on a machine"
    assert allocate(wanted, [HERE, VM]) == Waiting(reason)
    assert allocate(replace(wanted, placement=Placement()), [HERE, VM]) == Placed("here", 0)


def test_a_vm_is_left_to_those_who_ask_for_it():
    supplied = replace(VM, supply="present")
    assert allocate(WEB, [replace(HERE, slots_used=9, free_slot=9), supplied]) == Placed("here", 9)
    assert allocate(demand(node="vm1"), [HERE, supplied]) == Placed("vm1", 0)


@pytest.mark.parametrize(
    ("nodes", "placement", "reason"),
    [
        ([], {}, "no node serves tenant home: join one with `clachan node join`"),
        ([replace(HERE, owner="other")], {}, "no node serves tenant home: join one with `clachan node join`"),
        ([replace(HERE, state="revoked")], {}, "no node serves tenant home: join one with `clachan node join`"),
        ([HERE, VM], {"inside": "home.x.vm9"}, "waiting for the VM home.x.vm9 to join as a node"),
        ([VM], {}, "no node but VMs: place it `inside` one, or join a node with `clachan node join`"),
        (
            [HERE, replace(THERE, owner="other")],
            {"node": "there"},
            "no node is named there: join it with `clachan node join`, or place it on another",
        ),
        (
            [HERE, THERE],
            {"labels": {"disk": "nvme", "zone": "a"}},
            "no node has the labels disk=nvme, zone=a: give them to a node (here, there) or ask for others",
        ),
        (
            [replace(HERE, state="drained"), replace(THERE, state="joining")],
            {},
            "no node is active (here (drained), there (joining)): make one active or join another",
        ),
        ([replace(HERE, mode=None)], {}, "waiting for the first report of here: see that the agent runs there"),
        (
            [replace(HERE, mode="user", tenants=frozenset({"other"}))],
            {},
            "here runs without root and so serves one tenant only, another one: join a node as root",
        ),
        ([replace(HERE, supply=None)], {}, "no node has a supply of acme.tools.web: supply it with `clachan supply`"),
        (
            [replace(HERE, supply="failed"), replace(THERE, supply=None)],
            {},
            "the supply of acme.tools.web on here failed: see `clachan supply`",
        ),
        ([replace(HERE, free_slot=None)], {}, "all 10 slots of here are taken: remove an instance or add a node"),
        (
            [replace(HERE, memory_used=990), replace(THERE, cpu_used=990)],
            {},
            "acme.tools.web needs 64 MiB of memory and 50 milli-CPU: here (10 MiB and 1000 milli-CPU free), "
            "there (1000 MiB and 10 milli-CPU free): remove an instance or add a node",
        ),
    ],
)
def test_waiting_says_why_and_what_would_help(nodes, placement, reason):
    assert allocate(demand(**placement), nodes) == Waiting(reason)


def test_needs_of_the_software():
    user = replace(HERE, mode="user")
    assert allocate(replace(WEB, needs_root=True), [user]) == Waiting(
        "acme.tools.web needs root and here runs without: join a node as root"
    )
    assert allocate(replace(WEB, exclusive=True), [replace(HERE, same_software=1)]) == Waiting(
        "acme.tools.web has one instance per node, and here has one: supply it on another node"
    )
    assert allocate(replace(WEB, exclusive=True), [replace(HERE, same_software=1), THERE]) == Placed("there", 0)
    assert allocate(WEB, [replace(user, tenants=frozenset({"home"}))]) == Placed("here", 0)


def test_a_supply_under_way_is_enough():
    assert allocate(WEB, [replace(HERE, supply="waiting")]) == Placed("here", 0)


def test_many_nodes_are_not_all_named():
    nodes = [replace(HERE, name=f"n{index}", free_slot=None) for index in range(8)]
    assert allocate(WEB, nodes).reason == (
        "all 80 slots of n0, n1, n2, n3, n4, 3 more are taken: remove an instance or add a node"
    )


NODES = st.lists(
    st.builds(
        replace,
        st.just(HERE),
        name=st.sampled_from(["a", "b", "c", "d"]),
        owner=st.sampled_from([None, "home", "other"]),
        state=st.sampled_from(["active", "active", "drained"]),
        mode=st.sampled_from(["root", "user"]),
        slots=st.integers(0, 4),
        memory_mib=st.integers(0, 300),
        supply=st.sampled_from([None, "waiting", "present", "failed"]),
    ),
    max_size=4,
    unique_by=lambda node: node.name,
)
DEMANDS = st.lists(
    st.builds(
        replace,
        st.just(WEB),
        path=st.sampled_from(["home.x", "acme.y"]),
        placement=st.builds(Placement, spread=st.booleans(), node=st.sampled_from([None, None, "a"])),
    ),
    max_size=12,
)


class Platform:
    """Applies what allocation says, as the controller's transaction does."""

    def __init__(self, nodes):
        self.nodes = nodes
        self.taken = {node.name: {} for node in nodes}

    def summaries(self, wanted):
        for node in self.nodes:
            taken = self.taken[node.name]
            free = [index for index in range(node.slots) if index not in taken]
            yield replace(
                node,
                slots_used=len(taken),
                free_slot=free[0] if free else None,
                memory_used=sum(each.memory_mib for each in taken.values()),
                tenants=frozenset(each.tenant for each in taken.values()),
                siblings=sum(each.tenant == wanted.tenant for each in taken.values()),
            )

    def place(self, wanted):
        result = allocate(wanted, self.summaries(wanted))
        assert result == allocate(wanted, reversed(list(self.summaries(wanted))))
        if isinstance(result, Placed):
            assert result.slot not in self.taken[result.node]
            self.taken[result.node][result.slot] = wanted


@given(nodes=NODES, demands=DEMANDS)
def test_no_slot_twice_and_no_rule_broken(nodes, demands):
    platform = Platform(nodes)
    for wanted in demands:
        platform.place(wanted)
    for node in nodes:
        taken = platform.taken[node.name].values()
        tenants = {each.tenant for each in taken}
        assert len(taken) <= node.slots
        assert sum(each.memory_mib for each in taken) <= node.memory_mib
        assert not taken or (node.state == "active" and node.supply in {"waiting", "present"})
        assert node.owner is None or tenants <= {node.owner}
        assert node.mode == "root" or len(tenants) <= 1

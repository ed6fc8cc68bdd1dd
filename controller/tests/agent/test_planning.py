"""What a pass starts, from slice and memory alone."""

import pytest
from clachan.agent.memory import Instance, Supply
from clachan.agent.planning import Host, Plan, backoff, due, hosts_of, plan
from clachan.contract.inventory import InstanceVariables, Inventory, SupplyLine

DIGEST = "a" * 64
OTHER = "b" * 64
NOW = 1_000_000.0


def variables(
    name: str,
    state: str = "started",
    digest: str = DIGEST,
    software: str = "acme.things.hello",
    entry: str = "main",
) -> dict:
    slot = {
        "name": "s000",
        "index": 0,
        "user": "u",
        "directory": "/slots/s000",
        "addresses": {"ipv4": "127.0.0.1", "ipv6": "::1"},
        "ports": {"first": 1, "count": 1},
        "limits": {"memory_mib": 1, "tasks": 1, "cpu_milli": 1},
    }
    return {
        "id": f"id-{name}",
        "revision": 1,
        "path": f"home.{name}",
        "tenant": "home",
        "software": software,
        "digest": digest,
        "type": entry,
        "state": state,
        "node": "here",
        "slot": slot,
        "parent": None,
        "children": {},
        "sealed": [],
    }


def host(name: str = "one", **more: str) -> Host:
    found = variables(name, **more)
    return Host(f"home.{name}", InstanceVariables.model_validate(found), {}, f"digest of {name}")


def known(name: str = "one", **more: object) -> Instance:
    return Instance.model_validate({"id": f"id-{name}", "path": f"home.{name}", "slot": "s000", "user": "u", **more})


def planned(*hosts: Host, memory: tuple[Instance, ...] = (), **more: object) -> Plan:
    arguments = {"lines": [], "supplies": {}, "ready": {DIGEST, OTHER}, "busy": set(), "now": NOW, **more}
    return plan(
        {one.instance.id: one for one in hosts},
        {one.id: one for one in memory},
        **arguments,  # type: ignore[arg-type]
    )


def groups(found: Plan) -> list[tuple[str, str, list[str]]]:
    return [
        (group.purpose, f"{group.software} {group.digest[0]} {group.entry}", [one.path for one in group.hosts])
        for group in found.groups
    ]


DONE = {"tried": "digest of one", "applied": "digest of one", "phase": "converged"}


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (None, True),
        (known(tried="another"), True),
        (known(tried="digest of one"), True),  # killed in its run
        (known(**DONE), False),
        (known(**DONE, retry_at=NOW + 1), False),
        (known(**DONE, retry_at=NOW), True),
        (known(**DONE, retry_at=NOW + 301), True),  # the clock was set back
        (known(tried="digest of one", retry_at=NOW + 1), False),
        (known(tried="digest of one", applied="digest of one", phase="gone"), False),
    ],
)
def test_when_a_host_needs_a_run(memory: Instance | None, expected: bool) -> None:
    assert due(host(), memory, NOW) is expected


def test_a_waiting_host_needs_none() -> None:
    assert not due(host(state="waiting"), None, NOW)


def test_runs_are_grouped_by_what_is_to_be_run() -> None:
    many = [host("one"), host("two"), host("old", digest=OTHER), host("gone", state="absent"), host("kind", entry="db")]
    assert groups(planned(*many)) == [
        ("converge", "acme.things.hello a main", ["home.one", "home.two"]),
        ("converge", "acme.things.hello b main", ["home.old"]),
        ("absent", "acme.things.hello a absent", ["home.gone"]),
        ("converge", "acme.things.hello a db", ["home.kind"]),
    ]


def test_a_busy_instance_is_not_started_again() -> None:
    assert planned(host(), busy={"id-one"}).groups == ()


def test_a_large_group_is_cut() -> None:
    found = planned(*[host(f"h{i}") for i in range(250)])
    assert [len(group.hosts) for group in found.groups] == [100, 100, 50]


def line(state: str = "present", digest: str = DIGEST) -> SupplyLine:
    return SupplyLine.model_validate({"id": "s1", "software": "acme.things.hello", "digest": digest, "state": state})


def test_an_instance_waits_for_its_supply_and_others_do_not() -> None:
    other = host("other", software="acme.things.web")
    found = planned(host(), other, lines=[line()])
    assert groups(found) == [("converge", "acme.things.web a main", ["home.other"])]
    assert found.supplies == (line(),)
    supplied = Supply(id="s1", digest=DIGEST, state="present")
    found = planned(host(), other, lines=[line()], supplies={"s1": supplied})
    assert groups(found) == [
        ("converge", "acme.things.hello a main", ["home.one"]),
        ("converge", "acme.things.web a main", ["home.other"]),
    ]
    assert found.supplies == ()


def test_a_failed_supply_is_tried_again_in_time() -> None:
    failed = Supply(id="s1", digest=DIGEST, state="failed", retry_at=NOW + 1)
    assert planned(lines=[line()], supplies={"s1": failed}).supplies == ()
    assert planned(lines=[line()], supplies={"s1": failed}, now=NOW + 1).supplies == (line(),)
    assert planned(lines=[line(digest=OTHER)], supplies={"s1": failed}).supplies == (line(digest=OTHER),)


def test_software_that_no_supply_brings_is_fetched() -> None:
    assert planned(host(), ready=set()).fetch == (DIGEST,)
    assert planned(host(), ready=set(), lines=[line()]).fetch == ()


def test_what_a_former_platform_made_is_removed_by_the_present_one() -> None:
    ours = {"software": "clachan.platform.lake"}
    assert groups(planned(host(**ours, state="absent"), ready=set())) == [
        ("absent", f"clachan.platform.lake {DIGEST[0]} absent", ["home.one"])
    ]
    assert planned(host(**ours), ready=set()).groups == ()
    assert planned(host(state="absent"), ready=set()).groups == ()


def test_backoff_grows_and_never_stops() -> None:
    assert [backoff(n) for n in (1, 2, 3, 6, 7, 8, 1000)] == [5, 10, 20, 160, 300, 300, 300]


def test_a_host_that_cannot_be_read_is_left_alone() -> None:
    inventory = Inventory(
        platform="p",
        node="here",
        records={"home.good": {"clachan_instance": variables("good")}, "home.bad": {"clachan_instance": {"id": "x"}}},
        groupings={},
        software={},
        supplies=[],
    )
    hosts, problems = hosts_of(inventory)
    assert list(hosts) == ["id-good"]
    assert problems == ["host home.bad: revision Field required"]


def test_any_change_of_a_record_changes_its_digest() -> None:
    def digest(**more: object) -> str:
        record = {"clachan_instance": variables("one"), **more}
        inventory = Inventory(
            platform="p", node="here", records={"home.one": record}, groupings={}, software={}, supplies=[]
        )
        return hosts_of(inventory)[0]["id-one"].digest

    assert digest() == digest()
    assert len({digest(), digest(hello_message="a"), digest(hello_message="b"), digest(hello_other="a")}) == 4

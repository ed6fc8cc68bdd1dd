"""VMs whose agent falls silent, that are restarted, that come back or do not."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from clachan.server import clock
from clachan.server.services import standings
from clachan.server.services.sightings import Sightings
from live import Live, Node, node_fact, until
from vm_hosts import VM, instance_of, observed, running

pytestmark = pytest.mark.slow


def test_a_silent_vm_fails_and_comes_back(live: Live, host: Node) -> None:
    node = running(live, host)
    sightings = live.controller.sightings
    old = clock.after(-live.controller.settings.online_seconds - 1)
    sightings._seen[node.id] = old
    standings.watch_vms(live.controller)
    assert observed(live, "home.vm")[0] == "started", "the controller is too young to know"
    sightings._since = old
    for _ in range(2):
        standings.watch_vms(live.controller)
        said = f"the VM's agent: last heard of at {old}, expected a VM that runs and reaches the controller"
        assert observed(live, "home.vm") == ("failing", said)
    node.slice()
    standings.watch_vms(live.controller)
    assert observed(live, "home.vm") == ("started", "")
    states = [one["message"] for one in live.ok("GET", "/events?kind=instance_state")["items"]]
    assert states[-2:] == [f"home.vm is failing: {said}", "home.vm is started"]
    # a report ends it at once, and what its host says meanwhile does not
    sightings._seen[node.id] = old
    standings.watch_vms(live.controller)
    host.accepted({"kind": "instance", **instance_of(host, "home.vm"), "state": "started"})
    assert observed(live, "home.vm")[0] == "failing"
    node.accepted(node_fact(4))
    assert observed(live, "home.vm")[0] == "started"


def test_a_vm_that_was_stopped_boots_and_does_not_fail(live: Live, host: Node) -> None:
    node = running(live, host)
    live.request("home.vm", VM, state="stopped")
    host.started("home.vm")
    assert observed(live, "home.vm") == ("stopped", "")
    old = clock.after(-live.controller.settings.online_seconds - 1)
    live.controller.sightings._seen[node.id] = live.controller.sightings._since = old
    standings.watch_vms(live.controller)
    assert observed(live, "home.vm") == ("stopped", "")
    live.request("home.vm", VM)
    host.started("home.vm")
    standings.watch_vms(live.controller)
    assert observed(live, "home.vm") == ("converging", "waiting for the VM's agent to report")
    node.slice()
    standings.watch_vms(live.controller)
    assert observed(live, "home.vm") == ("started", "")


def test_a_vm_that_its_host_converged_again_must_speak_again(live: Live, host: Node) -> None:
    """Its agent was heard of a moment ago; that says nothing of the machine that was restarted since."""
    node = running(live, host)
    again = [{"kind": "instance", **instance_of(host, "home.vm"), "state": one} for one in ("converging", "started")]
    host.accepted(*again)
    standings.watch_vms(live.controller)
    assert observed(live, "home.vm") == ("converging", "waiting for the VM's agent to report")
    node.call("GET", "/nodes/self/questions")
    assert observed(live, "home.vm") == ("started", "")
    # one that was not restarted waits for questions: it is asked, and its next request comes at once
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(node.call, "GET", "/nodes/self/questions", headers={"prefer": "wait=600"})
        until(lambda: live.controller.hub.waiters(f"questions:{node.id}"))
        host.accepted(*again)
        assert waiting.result(10).json() == {"questions": []}
    node.call("GET", "/nodes/self/questions")
    assert observed(live, "home.vm") == ("started", "")


def test_a_vm_that_does_not_come_back_fails_after_a_while(live: Live, host: Node) -> None:
    node, sightings = running(live, host), live.controller.sightings
    again = [{"kind": "instance", **instance_of(host, "home.vm"), "state": one} for one in ("converging", "started")]
    host.accepted(*again)
    waits, old = ("converging", "waiting for the VM's agent to report"), clock.after(-599)
    sightings._seen[node.id] = sightings._since = sightings._doubted[node.id] = old
    standings.watch_vms(live.controller)
    assert observed(live, "home.vm") == waits
    sightings._doubted[node.id] = clock.after(-601)
    for _ in range(2):
        standings.watch_vms(live.controller)
        said = f"the VM's agent: last heard of at {old}, expected a VM that runs and reaches the controller"
        assert observed(live, "home.vm") == ("failing", said)
    # started once more by its host, it has its time again
    host.accepted(*again)
    standings.watch_vms(live.controller)
    assert observed(live, "home.vm") == waits
    node.slice()
    assert observed(live, "home.vm") == ("started", "")


def test_a_restarted_vm_is_doubted_also_by_a_controller_that_starts_anew(live: Live, host: Node) -> None:
    node = running(live, host)
    host.accepted(
        *({"kind": "instance", **instance_of(host, "home.vm"), "state": s} for s in ("converging", "started"))
    )
    live.controller.sightings = Sightings()
    standings.watch_vms(live.controller)
    assert observed(live, "home.vm") == ("converging", "waiting for the VM's agent to report")
    node.slice()
    standings.watch_vms(live.controller)
    assert observed(live, "home.vm") == ("started", "")

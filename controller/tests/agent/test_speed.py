"""Work is proportional to what changed."""

import time

import pytest

from .conftest import Node


@pytest.mark.slow
def test_an_unchanged_pass_over_fifty_instances_is_nearly_free(node: Node) -> None:
    for number in range(50):
        node.declare(f"i{number}")
    node.send()
    node.until(lambda: sum(one.phase == "converged" for one in node.agent.memory.instances.values()) == 50, seconds=120)
    node.work(1.5)
    waiting = node.agent.spool.waiting()

    began = time.process_time()
    node.send()
    node.agent._pass()
    whole = time.process_time() - began
    assert whole < 0.05, "a slice that brings nothing new, and the pass over it"

    began = time.process_time()
    for _ in range(10):
        node.agent._pass()
    assert (time.process_time() - began) / 10 < 0.005

    began = time.process_time()
    node.work(5)
    idle = (time.process_time() - began) / 5
    assert idle < 0.05, "one second of idling: fifty promises, each checked every second"
    assert (node.runs(), node.agent.spool.waiting()) == (1, waiting)

"""What happens to nodes, beside what the stories tell."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.builders import spec
from support.harness import SMALL, Harness

from allocator.pool import PoolExhausted
from controller.core.commands import SendAssignment
from controller.core.errors import LimitReached, PoolIsExhausted, ProtocolMismatch
from controller.core.events import NodeLeft
from controller.core.model import KnownAttempt, NodeState
from controller.views import node_view


def state(world: Harness, node: str) -> NodeState:
    return world.cluster.nodes[node].state


def test_node_is_joining_until_a_sample_comes_on_the_new_stream() -> None:
    with Harness() as world:
        world.ready("n1")
        assert state(world, "n1") is NodeState.READY
        world.join("n1")
        assert state(world, "n1") is NodeState.JOINING
        world.submit(spec())
        assert world.states(1) == ["PENDING"]
        world.sample("n1")
        assert world.states(1) == ["ASSIGNED"]


@pytest.mark.parametrize(
    ("silence", "expected"),
    [("29s", "READY"), ("30s", "UNREACHABLE"), ("119s", "UNREACHABLE"), ("120s", "DOWN")],
)
def test_silence_decides_the_state(silence: str, expected: str) -> None:
    with Harness() as world:
        world.ready("n1")
        world.advance(silence)
        assert state(world, "n1").value == expected
        world.sample("n1")
        assert state(world, "n1") is NodeState.READY


def test_node_without_a_stream_says_so_at_once_and_promises_nothing() -> None:
    with Harness() as world:
        world.ready("n1")
        record = world.cluster.nodes["n1"]
        for kept in (True, False):
            world.advance("1s")
            view = node_view(world.cluster, world.scheduler.displayed, record, world.now_ns)
            assert bool(view.memory_promise_bytes) is kept
            told = "" if kept else "its agent is not connected, last heard 2s ago"
            assert view.state_reason == told
            world.leave("n1")


def test_end_of_a_replaced_stream_changes_nothing() -> None:
    with Harness() as world:
        world.ready("n1")
        old = world.agents["n1"].hello.stream
        world.ready("n1")
        world.turn(NodeLeft(world.now_ns, "n1", old, "late"))
        assert world.cluster.nodes["n1"].stream == old + 1
        world.submit(spec())
        assert world.states(1) == ["ASSIGNED"]
        world.turn(NodeLeft(world.now_ns, "stranger", 5, "late"))


def test_new_agent_process_counts_its_reports_anew() -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec(), spec())
        world.ended(1)
        assert world.acknowledged() == [1]
        world.join("n1", attempts=(KnownAttempt(2, 1, ended=False),))
        assert world.welcome().acknowledged_sequence == 1
        world.join("n1", instance="i2")
        assert world.welcome().acknowledged_sequence == 0


def test_report_of_an_old_process_does_not_acknowledge_those_of_the_new_one() -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec())
        old = world.agents["n1"].hello.stream
        world.agents["n1"].sequence = 500
        world.join("n1", instance="i2", attempts=(KnownAttempt(1, 1, ended=True),))
        world.agents["n1"].sequence = 500
        world.ended(1, stream=old)
        assert world.acknowledged() == []
        assert world.cluster.nodes["n1"].acknowledged_sequence == 0
        world.agents["n1"].sequence = 0
        world.ended(1, stream=old + 1)
        assert world.acknowledged() == [1]
        assert world.states(1) == ["SUCCEEDED"]


def test_start_that_an_old_stream_reports_is_not_acknowledged() -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec())
        old = world.agents["n1"].hello.stream
        world.join("n1", attempts=(KnownAttempt(1, 1, ended=False),))
        world.started(1, stream=old)
        assert world.acknowledged() == []
        assert world.states(1) == ["ASSIGNED"]


def test_other_machine_may_have_a_name_that_nobody_uses() -> None:
    with Harness() as world:
        world.ready("n1", machine="m1")
        with pytest.raises(ProtocolMismatch, match="give this agent another --name"):
            world.join("n1", machine="m2")
        assert world.cluster.nodes["n1"].node.machine_id == "m1"
        world.leave("n1")
        world.join("n1", machine="m2")
        assert world.cluster.nodes["n1"].node.machine_id == "m2"


def test_refused_hello_leaves_nothing_behind() -> None:
    with Harness(replace(SMALL, nodes_max=2)) as world:
        world.ready("n1")
        world.ready("n2")
        before = world.pool.statistics().used_bytes
        with pytest.raises(LimitReached, match="'n3' is one too many"):
            world.join("n3")
        assert list(world.cluster.nodes) == ["n1", "n2"]
        assert world.pool.statistics().used_bytes == before


def test_hello_is_refused_when_the_pool_is_full_and_taken_when_it_is_not() -> None:
    with Harness(replace(SMALL, nodes_max=1_100)) as world:
        for number in range(1_024):  # the latest values of so many nodes lie in one block
            world.join(f"n{number}")
        hogs = []
        for size_bytes in (1 << 16, 1 << 10, 64):
            while True:
                try:
                    hogs.append(world.pool.allocate(size_bytes))
                except PoolExhausted:
                    break
        with pytest.raises(PoolIsExhausted, match="memory pool of"):
            world.join("one-more")
        assert "one-more" not in world.cluster.nodes
        for hog in hogs:
            world.pool.free(hog)
        world.join("one-more")


def test_capacity_below_what_is_reserved_is_a_fact_and_outlives_a_restart() -> None:
    with Harness() as world:
        world.ready("n1", capacity="4GiB")
        world.submit(spec("3GiB"))
        world.join("n1", capacity="2GiB", attempts=(KnownAttempt(1, 1, ended=False),))
        world.sample("n1")
        world.submit(spec("1GiB"))
        assert world.states(1, 2) == ["ASSIGNED", "PENDING"]
        world.check()
        world.restart()
        world.check()
        assert world.cluster.ledger.free_bytes(0) == -(1 << 30)


def test_node_that_moves_to_another_machine_leaves_the_first() -> None:
    with Harness() as world:
        world.ready("a", machine="m1")
        world.ready("b", machine="m1")
        table = world.cluster.table
        assert table.machines_shared
        assert table.neighbours(0) == {0, 1}
        world.leave("b")
        world.ready("b", machine="m2")
        assert not table.machines_shared
        assert table.neighbours(0) == {0}
        assert table.neighbours(1) == {1}


def test_neighbour_on_the_machine_does_not_measure_in_a_nodes_place() -> None:
    with Harness() as world:
        world.ready("a", machine="m", capacity="4GiB")
        world.ready("b", machine="m", capacity="3GiB")
        world.submit(spec())
        world.leave("a")
        world.now_ns += 31_000_000_000
        world.started(1, node="b", attempt=9)  # b is heard of, but does not measure
        world.join("a", machine="m", capacity="1GiB", attempts=(KnownAttempt(1, 1, ended=False),))
        world.sample("a")
        world.submit(spec("2GiB"))
        assert world.cluster.nodes["b"].state is NodeState.READY
        assert world.states(2) == ["PENDING"]
        world.sample("b")
        assert world.states(2) == ["ASSIGNED"]


def test_restarted_controller_waits_a_whole_lease_for_silent_nodes() -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec())
        world.advance("15m")
        world.restart()
        world.advance("15m")
        assert world.states(1) == ["ASSIGNED"]
        world.advance("1m")
        assert world.states(1) == ["PENDING"]


def test_assignment_is_sent_again_only_to_the_process_that_was_given_it() -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec())
        again = [c for c in world.join("n1") if isinstance(c, SendAssignment)]
        assert [(c.task.id, c.task.attempt) for c in again] == [(1, 1)]
        assert not [c for c in world.join("n1", instance="i2") if isinstance(c, SendAssignment)]
        again = [c for c in world.sample("n1") if isinstance(c, SendAssignment)]
        assert [(c.task.id, c.task.attempt) for c in again] == [(1, 2)]


def test_what_an_agent_still_has_at_its_goodbye_is_queued_again_at_once() -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec(), spec())
        world.leave("n1", goodbye=True)
        assert world.states(1, 2) == ["PENDING", "PENDING"]


def test_what_an_agent_still_has_when_its_stream_breaks_waits_for_it() -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec())
        world.leave("n1")
        assert world.states(1) == ["ASSIGNED"]


def test_attempts_of_another_cluster_are_not_taken_for_tasks_of_this_one() -> None:
    with Harness() as world:
        world.ready("n1")
        world.submit(spec())
        theirs = (KnownAttempt(1, 1, ended=True), KnownAttempt(9, 1, ended=False))
        world.cluster.cluster_id = "ours"
        commands = world.join("n1", attempts=theirs, cluster_id="theirs")
        assert world.welcome().forget == ()
        again = [c for c in commands if isinstance(c, SendAssignment)]
        assert [(c.task.id, c.task.attempt) for c in again] == [(1, 1)]
        world.join("n1", attempts=theirs, cluster_id="ours")
        assert world.welcome().forget == (theirs[1],)


def test_node_whose_agent_has_left_is_down_at_once_and_stays_so() -> None:
    with Harness() as world:
        world.ready("n1")
        world.leave("n1", goodbye=True)
        record = world.cluster.nodes["n1"]
        for silence in ("0s", "31s", "2m"):
            world.advance(silence)
            assert (record.state, record.has_left) == (NodeState.DOWN, True)
        world.join("n1", instance="i2")
        assert (record.state, record.has_left) == (NodeState.JOINING, False)
        world.sample("n1")
        assert record.state is NodeState.READY

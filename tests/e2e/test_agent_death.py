"""The agent dies or is ended: its tasks die with it, and none is lost."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from mass.v1 import types_pb2
from support.cluster import Cluster
from support.processes import is_running

pytestmark = pytest.mark.e2e

SEED = 6
KILLS = 6


def noting(log: Path, then: str) -> tuple[str, ...]:
    """Return a command that notes its attempt, its process id and that of a child, and goes on."""
    return ("sh", "-c", f"sleep 60 & echo $MASS_ATTEMPT $$ $! >> {log}; {then}")


def noted(cluster: Cluster, log: Path, count: int) -> list[list[int]]:
    """Return what that many attempts have noted."""

    def read() -> list[list[int]]:
        text = log.read_text() if log.exists() else ""
        return [[int(word) for word in line.split()] for line in text.splitlines()]

    cluster.until(lambda: len(read()) == count, f"{count} attempts have noted themselves")
    return read()


def test_task_of_a_killed_agent_is_run_again_as_its_second_attempt(
    cluster: Cluster, tmp_path: Path
) -> None:
    log = tmp_path / "attempts"
    task_id = cluster.submit_one(*noting(log, "[ $MASS_ATTEMPT = 2 ] || wait"))
    ((_, *pids),) = noted(cluster, log, 1)
    cluster.agents["node-1"].kill()
    cluster.start_agent("node-1")
    task = cluster.wait_state(task_id, "SUCCEEDED")
    assert (task.attempt, task.failures) == (2, 0)
    (first, second) = noted(cluster, log, 2)
    assert (first[0], second[0]) == (1, 2)
    assert not any(is_running(pid) for pid in pids)


def test_processes_of_a_killed_agent_are_gone_before_the_next_attempt(
    cluster: Cluster, tmp_path: Path
) -> None:
    log, seen = tmp_path / "attempts", tmp_path / "seen"
    # The second attempt looks by itself for processes of the first one that are no zombies.
    status = "/proc/$pid/status"
    look = (
        f"for pid in $(sed -n 's/^1 //p' {log}); do"
        f" [ -e {status} ] && grep -q '^State:.[^ZX]' {status} && echo $pid >> {seen}; done"
    )
    task_id = cluster.submit_one(*noting(log, f"[ $MASS_ATTEMPT = 1 ] && wait; {look}; true"))
    noted(cluster, log, 1)
    cluster.agents["node-1"].kill()
    cluster.start_agent("node-1")
    assert cluster.wait_state(task_id, "SUCCEEDED").attempt == 2
    assert not seen.exists()


def test_task_that_must_not_be_run_again_is_lost_with_its_agent(
    cluster: Cluster, tmp_path: Path
) -> None:
    log = tmp_path / "attempts"
    task_id = cluster.submit_one(*noting(log, "wait"), no_requeue=True)
    noted(cluster, log, 1)
    cluster.agents["node-1"].kill()
    cluster.start_agent("node-1")
    task = cluster.wait_state(task_id, "LOST")
    assert task.attempt == 1
    assert "must not be requeued" in task.reason
    assert len(noted(cluster, log, 1)) == 1


def test_no_attempt_runs_beside_another_while_the_agent_is_killed_6_times(
    cluster: Cluster, tmp_path: Path
) -> None:
    chance = random.Random(SEED)
    log, overlaps = tmp_path / "attempts", tmp_path / "overlaps"
    # The lock is held until the shell and its child are gone, however they end.
    script = (
        f"exec 9> {tmp_path}/lock-$MASS_TASK_ID; flock -n 9 || echo $MASS_TASK_ID >> {overlaps};"
        f" echo $MASS_TASK_ID $MASS_ATTEMPT >> {log}; sleep 0.4"
    )
    ids = cluster.submit("sh", "-c", script, count=12, cpus=1)
    for _ in range(KILLS):
        cluster.until(
            lambda: cluster.client.tasks(100, ["TASK_STATE_RUNNING"])[0] or _all_ended(cluster),
            "a task runs",
        )
        time.sleep(chance.uniform(0, 0.3))  # the random moment itself: nothing to wait for
        cluster.agents["node-1"].kill()
        cluster.start_agent("node-1")
    tasks = cluster.wait_ended(ids)
    assert {task.state for task in tasks} == {types_pb2.TASK_STATE_SUCCEEDED}
    assert not overlaps.exists()
    attempts = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    assert len(attempts) == len(set(attempts)), "an attempt was executed twice"
    last = {task_id: max(n for i, n in attempts if i == task_id) for task_id, _ in attempts}
    assert last == {int(task.id): task.attempt for task in tasks}


def _all_ended(cluster: Cluster) -> bool:
    """Tell whether nothing is open any more."""
    open_states = [f"TASK_STATE_{state}" for state in ("PENDING", "ASSIGNED", "RUNNING")]
    return not cluster.client.tasks(1, open_states)[0]


def test_end_that_the_controller_has_not_saved_survives_both(
    cluster: Cluster, tmp_path: Path
) -> None:
    gate, log = tmp_path / "gate", tmp_path / "attempts"
    task_id = cluster.submit_one(
        "sh", "-c", f"echo $MASS_ATTEMPT >> {log}; while [ ! -e {gate} ]; do sleep 0.02; done"
    )
    noted(cluster, log, 1)
    cluster.controller.kill()
    gate.touch()
    ends = cluster.directory / "agent-node-1" / "reports" / "ends"
    cluster.until(lambda: ends.stat().st_size, "the end is kept on disk")
    cluster.agents["node-1"].kill()
    cluster.start_controller()
    cluster.start_agent("node-1")
    task = cluster.wait_state(task_id, "SUCCEEDED")
    assert task.attempt == 1
    assert len(noted(cluster, log, 1)) == 1


def test_terminated_agent_ends_its_tasks_and_says_so(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "attempts"
    lost = cluster.submit_one(*noting(log, "wait"), no_requeue=True)
    again = cluster.submit_one(*noting(log, "[ $MASS_ATTEMPT = 2 ] || wait"))
    pids = [pid for attempt in noted(cluster, log, 2) for pid in attempt[1:]]
    asked_at = time.monotonic()
    assert cluster.agents["node-1"].terminate() == 0
    assert time.monotonic() - asked_at < 8.0  # below the grace: sh ends at SIGTERM
    assert not any(is_running(pid) for pid in pids)
    assert cluster.wait_state(lost, "LOST").signal == signal.SIGTERM
    task = cluster.wait_state(again, "PENDING")
    assert task.attempt == 1
    cluster.start_agent("node-1")
    assert cluster.wait_state(again, "SUCCEEDED").attempt == 2


def test_agent_that_no_controller_knows_waits_for_one_and_then_serves(cluster: Cluster) -> None:
    cluster.controller.kill()
    cluster.start_agent("node-2")
    cluster.until(lambda: "disconnected" in cluster.agents["node-2"].log(), "it has tried")
    cluster.start_controller()
    cluster.wait_ready("node-1", "node-2")
    tasks = cluster.wait_ended(cluster.submit("sleep", "0.2", count=4, cpus=1))
    assert {task.state for task in tasks} == {types_pb2.TASK_STATE_SUCCEEDED}
    assert {task.node_id for task in tasks} == {"node-1", "node-2"}

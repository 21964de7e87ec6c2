"""Memory: what a task may use, what a node promises, and what others take."""

from __future__ import annotations

import re
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from e2e.conftest import MakeCluster
from mass.v1 import types_pb2
from support import watchdog_agent
from support.cluster import GIB, MIB, Cluster, eater
from support.groups import why_no_groups

pytestmark = pytest.mark.e2e

needs_groups = pytest.mark.skipif(bool(why_no_groups()), reason=why_no_groups())
REACTION_SECONDS_MAX = 2.0
HOG_MIB = 1_024  # so much that what else happens on the machine does not tip the scale


@needs_groups
def test_task_that_outgrows_its_limit_ends_out_of_memory_with_its_numbers(shared: Cluster) -> None:
    task_id = shared.mass(
        "submit", "-q", "--mem", "200MiB", "--mem-limit", "200MiB", "--", *eater(400)
    ).out.strip()
    task = shared.wait_state(task_id, "OUT_OF_MEMORY")
    assert task.oom_cause == types_pb2.OOM_CAUSE_OWN_LIMIT
    assert task.memory_limit_bytes == 200 * MIB
    assert 190 * MIB <= task.memory_peak_bytes <= 200 * MIB
    shown = shared.mass("task", "show", task_id).out
    assert "OUT_OF_MEMORY" in shown
    assert "limit 200 MiB" in shown
    assert re.search(r"peak (19\d(\.\d)?|200) MiB", shown), shown


@needs_groups
def test_same_task_succeeds_with_a_limit_it_does_not_reach(shared: Cluster) -> None:
    ran = shared.mass("run", "-q", "--mem", "600MiB", "--mem-limit", "600MiB", "--", *eater(400))
    assert (ran.code, ran.out) == (0, "ate\n"), ran


def test_size_without_a_hard_limit_is_only_what_is_expected(shared: Cluster) -> None:
    ran = shared.mass("run", "-q", "--mem", "200MiB", "--", *eater(400))
    assert (ran.code, ran.out) == (0, "ate\n"), ran


def test_watchdog_ends_a_task_that_outgrows_its_limit_where_there_are_no_groups(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster()
    cluster.start_controller()
    entry = (str(Path(watchdog_agent.__file__).resolve()),)
    cluster.start_agent("watched", entry=entry)
    cluster.wait_ready()
    assert cluster.client.node("watched").enforcement == "watchdog"
    limit = 200 * MIB
    # It stays large until it is seen: the watchdog looks only now and then.
    task = cluster.run(*eater(400, 60), memory_request_bytes=limit, memory_limit_bytes=limit)
    assert task.state == types_pb2.TASK_STATE_OUT_OF_MEMORY
    assert task.oom_cause == types_pb2.OOM_CAUSE_OWN_LIMIT
    assert task.memory_limit_bytes == limit
    assert task.memory_peak_bytes >= 150 * MIB
    run_ns = task.ended_at.ToNanoseconds() - task.started_at.ToNanoseconds()
    assert run_ns < 10_000_000_000
    task = cluster.run(*eater(400), memory_request_bytes=600 * MIB)
    assert task.state == types_pb2.TASK_STATE_SUCCEEDED
    task = cluster.run("sh", "-c", "kill -9 $$")
    assert (task.state, task.signal) == (types_pb2.TASK_STATE_FAILED, 9)


def test_task_that_kills_itself_has_failed_and_is_not_out_of_memory(shared: Cluster) -> None:
    task = shared.run("sh", "-c", "kill -9 $$")
    assert task.state == types_pb2.TASK_STATE_FAILED
    assert task.signal == 9
    assert not task.HasField("exit_code")
    assert task.oom_cause == types_pb2.OOM_CAUSE_UNSPECIFIED
    assert "SIGKILL" in task.reason


def test_nodes_of_one_machine_never_take_more_than_they_can_promise(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster()
    cluster.start_controller()
    cluster.start_agent("one", "--memory", "1GiB")
    cluster.start_agent("two", "--memory", "1GiB")
    cluster.wait_ready()
    ids = cluster.submit("sleep", "0.7", count=5, memory_request_bytes=600 * MIB, memory_exact=True)
    reasons: set[str] = set()

    def all_ended() -> bool:
        tasks = [cluster.client.task(task_id) for task_id in ids]
        reasons.update(task.reason for task in tasks if task.reason_code == "NO_NODE_WITH_MEMORY")
        for node in cluster.client.nodes():
            assert node.memory_reserved_bytes <= 1 * GIB, node
            assert node.tasks_running <= 1, node
        return all(task.HasField("ended_at") for task in tasks)

    cluster.until(all_ended, "five tasks have ended")
    tasks = cluster.wait_ended(ids)
    assert {task.state for task in tasks} == {types_pb2.TASK_STATE_SUCCEEDED}
    assert {task.node_id for task in tasks} == {"one", "two"}
    for node_id in ("one", "two"):
        spans = sorted(
            (task.started_at.ToNanoseconds(), task.ended_at.ToNanoseconds())
            for task in tasks
            if task.node_id == node_id
        )
        assert all(before[1] <= after[0] for before, after in pairwise(spans)), spans
    sentence = r"asks 600 MiB, the largest promise is 4\d\d(\.\d)? MiB on node (one|two)"
    assert reasons, "no task was seen waiting"
    assert all(re.search(sentence, reason) for reason in reasons), reasons


def test_memory_taken_outside_keeps_a_task_away_until_it_is_given_back(cluster: Cluster) -> None:
    before = cluster.until(
        lambda: node if (node := cluster.client.node("node-1")).memory_foreign_bytes else None,
        "foreign memory is measured",
    )
    request = before.memory_promise_bytes - HOG_MIB * MIB // 2
    if request <= 0:
        pytest.skip(f"the machine can promise only {before.memory_promise_bytes} bytes")
    with subprocess.Popen(eater(HOG_MIB, 60), stdout=subprocess.PIPE) as hog:
        try:
            assert hog.stdout is not None
            assert hog.stdout.readline() == b"ate\n"
            taken_at = time.monotonic()
            cluster.until(
                lambda: cluster.client.node("node-1").memory_promise_bytes < request,
                "the node promises less",
            )
            task_id = cluster.submit_one(
                "sleep", "0.1", memory_request_bytes=request, memory_exact=True
            )
            cluster.until(
                lambda: "foreign_used" in cluster.client.task(task_id).reason, "it says why"
            )
            assert time.monotonic() - taken_at <= REACTION_SECONDS_MAX
            (refusal,) = cluster.client.explain(task_id).refusals
            assert refusal.foreign_used_bytes >= HOG_MIB * MIB
            assert refusal.requested_bytes == request > refusal.promise_bytes
            assert cluster.client.task(task_id).attempt == 0
        finally:
            hog.kill()
    # Others on this machine may hold memory too: the time counts from when there is enough of it.
    enough = before.memory_available_bytes - HOG_MIB * MIB // 2
    cluster.until(lambda: psutil.virtual_memory().available > enough, "memory is given back")
    released_at = time.monotonic()
    cluster.wait_state(task_id, "RUNNING", "SUCCEEDED")
    assert time.monotonic() - released_at <= REACTION_SECONDS_MAX

"""The life of a task as its user sees it: how it runs, ends, repeats, and is cancelled."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from mass.v1 import types_pb2
from support.cluster import MIB, Cluster, interrupt, reason_of
from support.processes import is_running

pytestmark = pytest.mark.e2e

IGNORES_SIGTERM = "trap '' TERM; echo ready; while true; do sleep 0.05; done"


def test_cancel_kills_what_ignores_sigterm_after_its_grace(shared: Cluster) -> None:
    task_id = shared.submit_one("sh", "-c", IGNORES_SIGTERM)
    shared.until(lambda: shared.output(task_id)[0] == b"ready\n", "the trap is set")
    asked_at = time.monotonic()
    (task,) = shared.client.cancel([task_id], grace_ns=400_000_000)
    assert task.state == types_pb2.TASK_STATE_STOPPING
    task = shared.wait_state(task_id, "CANCELLED")
    assert 0.4 <= time.monotonic() - asked_at <= 3.0
    assert task.signal == 9
    assert task.reason == "cancelled by its user"


def test_cancel_ends_a_waiting_task_at_once(shared: Cluster) -> None:
    task_id = shared.submit_one("true", memory_request_bytes=1 << 44, memory_exact=True)
    assert "when empty" in shared.client.task(task_id).reason
    (task,) = shared.client.cancel([task_id], grace_ns=None)
    assert task.state == types_pb2.TASK_STATE_CANCELLED
    assert task.attempt == 0
    assert shared.client.cancel([task_id], grace_ns=None) == [task]


def test_time_limit_ends_a_task(shared: Cluster) -> None:
    task = shared.run("sleep", "60", time_limit=Duration(nanos=300_000_000))
    assert task.state == types_pb2.TASK_STATE_TIMED_OUT
    assert task.reason == "ran longer than its time limit of 0.3 s"
    run_ns = task.ended_at.ToNanoseconds() - task.started_at.ToNanoseconds()
    assert 300_000_000 <= run_ns < 2_000_000_000


def test_failed_task_is_repeated_as_often_as_it_may(shared: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "attempts"
    task = shared.run("sh", "-c", f"echo $MASS_ATTEMPT >> {log}; exit 3", retries=2)
    assert task.state == types_pb2.TASK_STATE_FAILED
    assert (task.attempt, task.failures, task.exit_code) == (3, 3, 3)
    assert log.read_text() == "1\n2\n3\n"
    task = shared.run("sh", "-c", "test $MASS_ATTEMPT = 2", retries=5)
    assert task.state == types_pb2.TASK_STATE_SUCCEEDED
    assert (task.attempt, task.failures) == (2, 1)


def test_command_that_cannot_be_started_says_why(shared: Cluster) -> None:
    task = shared.run("/no/such/program")
    assert task.state == types_pb2.TASK_STATE_FAILED
    assert task.reason.startswith("could not be started: ")
    assert "/no/such/program" in task.reason
    assert not task.HasField("exit_code")


def test_task_gets_its_variables_and_its_directory(shared: Cluster, tmp_path: Path) -> None:
    task_id = shared.submit_one(
        "sh",
        "-c",
        "echo $COLOUR $MASS_TASK_ID $MASS_ATTEMPT $MASS_NODE $MASS_MEM_LIMIT_BYTES; pwd",
        environment={"COLOUR": "green"},
        working_directory=str(tmp_path),
        memory_limit_bytes=32 * MIB,
        name="the name",
    )
    (task,) = shared.wait_ended([task_id])
    out, _ = shared.output(task_id)
    assert out.decode() == f"green {task_id} 1 node-1 {32 * MIB}\n{tmp_path}\n"
    assert task.spec.name == task.spec.category == "the name"
    task_id = shared.submit_one("pwd")
    shared.wait_ended([task_id])
    own = shared.output(task_id)[0].decode().strip()
    assert Path(own).is_dir()
    assert own != str(tmp_path)


def test_higher_priority_goes_first(shared: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "order"
    shared.client.cordon("node-1", "the order is being tested", "tester")
    try:
        ids = [
            shared.submit_one("sh", "-c", f"echo {name} >> {log}", priority=priority, cpus=2)
            for name, priority in (("low", -1), ("first", 0), ("second", 0), ("high", 5))
        ]
        task = shared.client.task(ids[0])
        assert task.state == types_pb2.TASK_STATE_PENDING
        (refusal,) = shared.client.explain(ids[0]).refusals
        assert refusal.reason_code == "CORDONED"
        assert "the order is being tested" in refusal.reason
        node = shared.client.node("node-1")
        assert node.scheduling == types_pb2.SCHEDULING_CORDONED
        assert node.scheduling_by == "tester"
    finally:
        shared.client.uncordon("node-1", "tester")
    shared.wait_ended(ids)
    assert log.read_text().split() == ["high", "first", "second", "low"]


def test_cordoned_node_lets_its_task_go_on(shared: Cluster) -> None:
    task_id = shared.submit_one("sleep", "0.5")
    shared.wait_state(task_id, "RUNNING")
    assert shared.mass("node", "cordon", "node-1").code == 0
    try:
        (task,) = shared.wait_ended([task_id])
    finally:
        assert shared.mass("node", "uncordon", "node-1").code == 0
    assert task.state == types_pb2.TASK_STATE_SUCCEEDED


def test_thousand_tasks_from_a_file_all_end(shared: Cluster, tmp_path: Path) -> None:
    lines = [{"command": ["true"], "mem": "16MiB", "cpus": 0.02, "name": f"t{n}"}
             for n in range(1_000)]  # fmt: skip
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ran = shared.mass("submit", "--from", str(file))
    assert ran.code == 0, ran.err
    ids = ran.out.split()
    assert len(ids) == len(set(ids)) == 1_000
    tasks = shared.wait_ended(ids, seconds_max=60)
    assert {task.state for task in tasks} == {types_pb2.TASK_STATE_SUCCEEDED}
    assert {task.attempt for task in tasks} == {1}
    assert [task.spec.name for task in tasks] == [f"t{n}" for n in range(1_000)]
    listed, more = shared.client.tasks(1_000)
    assert [task.id for task in listed] == ids[::-1]
    assert more


def test_run_ends_with_the_code_of_its_task(shared: Cluster) -> None:
    ran = shared.mass("run", "-q", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (ran.code, ran.out, ran.err) == (7, "out\n", "err\n")
    assert shared.mass("run", "-q", "--", "sh", "-c", "kill -TERM $$").code == 128 + 15
    assert shared.mass("run", "-q", "-t", "300ms", "--", "sleep", "60").code == 124
    assert shared.mass("run", "-q", "--", "/no/such/program").code == 126


def test_ctrl_c_of_run_cancels_its_task(shared: Cluster) -> None:
    with shared.mass_process("run", "--", "sh", "-c", "echo $$; exec sleep 60") as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert is_running(pid)
        interrupt(process)
        process.communicate(timeout=20)
    assert process.returncode == 130
    assert not is_running(pid)
    (task,), _ = shared.client.tasks(1)
    assert task.state == types_pb2.TASK_STATE_CANCELLED


def test_unknown_task_is_named_in_the_refusal(shared: Cluster) -> None:
    error = reason_of(lambda: shared.client.task("999999"))
    assert (error.reason, error.message) == ("NOT_FOUND", "no task has the id 999999")
    ran = shared.mass("task", "show", "999999")
    assert ran.code == 3
    assert "no task has the id 999999" in ran.err

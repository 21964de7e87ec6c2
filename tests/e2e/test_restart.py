"""The controller is killed: no task is lost, and none runs twice."""

from __future__ import annotations

import random
import resource
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from e2e.conftest import MakeCluster
from mass.v1 import types_pb2
from support import faulty_controller
from support.cluster import MIB, Cluster, reason_of

pytestmark = pytest.mark.e2e

SEED = 20
KILLS = 20
FAULTY = (str(Path(faulty_controller.__file__).resolve()), "controller")
# One write of one line: two processes cannot mix theirs.
NOTE = "echo $MASS_TASK_ID $MASS_ATTEMPT >> {log}; sleep {seconds}"


def noting(log: Path, seconds: float) -> tuple[str, ...]:
    """Return a command that notes its execution in a file and then sleeps."""
    return ("sh", "-c", NOTE.format(log=log, seconds=seconds))


def executions(log: Path) -> Counter[str]:
    """Return how often each task was executed."""
    return Counter(line.split()[0] for line in log.read_text().splitlines())


def assert_each_ran_once(cluster: Cluster, ids: list[str], log: Path) -> None:
    """Wait for the ends and compare them with what the tasks themselves have noted."""
    tasks = cluster.wait_ended(ids, seconds_max=60)
    assert {task.state for task in tasks} == {types_pb2.TASK_STATE_SUCCEEDED}, tasks
    assert executions(log) == Counter(ids)
    assert {task.attempt for task in tasks} == {1}


def test_every_task_ends_once_while_the_controller_is_killed_20_times(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    chance = random.Random(SEED)
    log = tmp_path / "executions"
    cluster = make_cluster()
    cluster.start_controller()
    cluster.start_agent("node-1", "--cpus", "2")
    cluster.wait_ready()
    ids: list[str] = []
    for _ in range(KILLS):
        # The client waits for a controller that is just starting; two run, the rest of 22 wait.
        if missing := 22 - open_tasks(cluster):
            ids += cluster.submit(*noting(log, 0.2), count=missing, cpus=1)
        time.sleep(chance.uniform(0, 0.4))  # the random moment itself: nothing to wait for
        cluster.controller.kill()
        cluster.controller.start()
    assert_each_ran_once(cluster, ids, log)
    assert len(ids) > 22, "no task has ended between the kills"


def open_tasks(cluster: Cluster) -> int:
    """Return how many tasks have not ended."""
    states = ("PENDING", "ASSIGNED", "STARTING", "RUNNING")
    tasks, more = cluster.client.tasks(1_000, [f"TASK_STATE_{state}" for state in states])
    assert not more
    assert len(tasks) <= 22
    return len(tasks)


@pytest.mark.parametrize("moment", ["submission", "assignment", "started", "ended"])
def test_death_after_a_commit_and_before_its_words_loses_and_doubles_nothing(
    make_cluster: MakeCluster, tmp_path: Path, moment: str
) -> None:
    log, mark = tmp_path / "executions", tmp_path / "mark"
    cluster = make_cluster(entry=FAULTY)
    cluster.start_controller(MASS_FAULT=moment, MASS_FAULT_MARK=str(mark))
    cluster.start_agent()
    cluster.wait_ready()
    if moment == "assignment":
        # Else the submission is saved by the same commit.
        cluster.client.cordon("node-1", "", "tester")
    restarted = threading.Thread(target=restart_after_death, args=(cluster,))
    restarted.start()
    # The client tries again with the same request id until a controller answers.
    ids = cluster.submit(*noting(log, 0.05), count=3)
    if moment == "assignment":
        cluster.client.uncordon("node-1", "tester")
    restarted.join()
    assert mark.exists()
    assert ids == ["1", "2", "3"]
    assert_each_ran_once(cluster, ids, log)
    listed, _ = cluster.client.tasks(100)
    assert [task.id for task in listed] == ["3", "2", "1"]


def test_death_between_the_saved_cancel_and_its_stop_still_ends_the_task(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    log, mark = tmp_path / "executions", tmp_path / "mark"
    cluster = make_cluster(entry=FAULTY)
    cluster.start_controller(MASS_FAULT="cancel", MASS_FAULT_MARK=str(mark))
    cluster.start_agent()
    cluster.wait_ready()
    task_id = cluster.submit_one(*noting(log, 60))
    cluster.until(lambda: log.exists() and log.read_text(), "the task runs")
    restarted = threading.Thread(target=restart_after_death, args=(cluster,))
    restarted.start()
    cluster.client.cancel([task_id], grace_ns=None)
    restarted.join()
    task = cluster.wait_state(task_id, "CANCELLED")
    assert mark.exists()
    assert executions(log) == Counter([task_id])
    assert task.attempt == 1


def test_terminated_controller_ends_in_order_and_tasks_go_on(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    log = tmp_path / "executions"
    cluster = make_cluster()
    cluster.start_controller()
    cluster.start_agent()
    cluster.wait_ready()
    ids = cluster.submit(*noting(log, 1.0), count=2)
    cluster.until(lambda: log.exists() and len(executions(log)) == 2, "both run")
    assert cluster.controller.terminate() == 0
    assert cluster.controller.log().rstrip().endswith("stopped")
    cluster.start_controller()
    assert_each_ran_once(cluster, ids, log)


def test_store_that_cannot_be_written_ends_the_controller_with_a_sentence(
    cluster: Cluster,
) -> None:
    assert cluster.run("true").attempt == 1
    # No file may grow beyond the largest there is: to SQLite that is a disk that fails.
    bytes_max = max(path.stat().st_size for path in cluster.data.iterdir())
    resource.prlimit(cluster.controller.pid, resource.RLIMIT_FSIZE, (bytes_max, bytes_max))
    error = reason_of(lambda: cluster.submit("true", count=2_000, name="x" * 100))
    assert error.reason.startswith("STORE_")
    assert cluster.controller.wait() == 1
    last = cluster.controller.log().splitlines()[-1]
    assert last == f"mass controller: {error.message}"
    assert str(cluster.data) in last
    cluster.start_controller()
    cluster.wait_ready()
    listed, _ = cluster.client.tasks(10)
    assert [task.id for task in listed] == ["1"]
    assert cluster.run("true").id == "2"


def test_second_controller_on_the_data_or_the_port_is_refused(cluster: Cluster) -> None:
    flags = ("controller", "--data", str(cluster.data))
    ran = cluster.mass(*flags, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
    assert ran.code == 1
    assert str(cluster.data) in ran.err
    other = cluster.directory / "other"
    elsewhere = ("controller", "--data", str(other), "--http", "127.0.0.1:0")
    ran = cluster.mass(*elsewhere, "--listen", cluster.address)
    assert ran.code == 1
    assert f"--listen {cluster.address} is taken" in ran.err
    ran_here = cluster.run("true", memory_limit_bytes=32 * MIB)
    assert ran_here.memory_limit_bytes == 32 * MIB


def restart_after_death(cluster: Cluster) -> None:
    """Start the controller again as soon as it has killed itself."""
    assert cluster.controller.wait() == -9
    cluster.controller.start(
        MASS_FAULT="submission",
        MASS_FAULT_MARK=str(cluster.directory),  # it exists, so nothing happens any more
    )

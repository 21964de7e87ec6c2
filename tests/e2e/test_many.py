"""Many tasks as real processes: arrays with a bound, graphs that wait, and what stops them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from mass.v1 import task_pb2, types_pb2
from support.cluster import MIB, Cluster

pytestmark = pytest.mark.e2e


def small(*command: str, **fields: object) -> types_pb2.TaskSpec:
    """Return a task that hardly takes anything."""
    return types_pb2.TaskSpec(
        command=command,
        memory_request_bytes=8 * MIB,
        cpus=0.01,
        **fields,  # type: ignore[arg-type]
    )


def ends_of(cluster: Cluster, ids: list[str]) -> list[types_pb2.Task]:
    """Wait for tasks (an array is its elements) and return them as they ended."""
    latest = {task.id: task for task in cluster.client.watch(ids)}
    return list(latest.values())


def span(task: types_pb2.Task) -> tuple[int, int]:
    return task.started_at.ToNanoseconds(), task.ended_at.ToNanoseconds()


def most_at_once(tasks: list[types_pb2.Task]) -> int:
    """Return how many ran at the same time, at most."""
    spans = [span(task) for task in tasks]
    moments = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    at_once = most = 0
    for _, change in moments:
        at_once += change
        most = max(most, at_once)
    return most


def test_array_runs_through_with_no_more_at_once_than_its_bound(cluster: Cluster) -> None:
    array = types_pb2.ArraySpec(indexes="1-1000", running_max=20)
    (array_id,) = cluster.client.submit([small("true", array=array)], "ada")
    tasks = ends_of(cluster, [array_id])
    assert len(tasks) == 1_000
    assert {task.state for task in tasks} == {types_pb2.TASK_STATE_SUCCEEDED}
    assert sorted(task.array_index for task in tasks) == list(range(1, 1_001))
    assert 1 < most_at_once(tasks) <= 20


def test_tasks_sent_ahead_never_run_more_at_once_than_there_are_cpus(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.start_controller()
        cluster.start_agent("node-1", "--cpus", "2")
        cluster.wait_ready()
        spec = types_pb2.TaskSpec(command=["true"], memory_request_bytes=8 * MIB, cpus=1.0)
        ends_of(cluster, cluster.client.submit([spec] * 20, "ada"))
        ids = cluster.client.submit([spec] * 400, "ada")
        sent_ahead: set[str] = set()
        watched = {}
        for task in cluster.client.watch(ids):
            watched[task.id] = task
            if task.reason_code == "AHEAD":
                sent_ahead.add(task.id)
        assert {task.state for task in watched.values()} == {types_pb2.TASK_STATE_SUCCEEDED}
        assert sent_ahead
        assert most_at_once(list(watched.values())) <= 2


def test_graph_of_a_thousand_runs_in_its_order(cluster: Cluster) -> None:
    chance = random.Random(1)
    specs = []
    for place in range(1_000):
        count = min(place, chance.randint(0, 3))
        earlier = chance.sample(range(max(0, place - 40), place), count)
        after = [types_pb2.Dependency(key=f"k{other}") for other in earlier]
        specs.append(small("true", key=f"k{place}", after=after))
    chance.shuffle(specs)  # a task may name those behind it
    ids = cluster.client.submit(specs, "ada")
    tasks = {task.id: task for task in ends_of(cluster, ids)}
    assert {task.state for task in tasks.values()} == {types_pb2.TASK_STATE_SUCCEEDED}
    edges = 0
    for task in tasks.values():
        for wanted in task.spec.after:
            edges += 1
            assert span(tasks[wanted.task_id])[1] <= span(task)[0], "started early"
    assert edges > 1_000


def test_element_knows_its_index_and_its_error_becomes_its_reason(
    cluster: Cluster, tmp_path: Path
) -> None:
    script = (
        "echo index $MASS_ARRAY_INDEX of $MASS_TASK_LABEL;"
        " echo the input is gone > $MASS_ERROR_FILE; exit 3"
    )
    spec = small("sh", "-c", script, array=types_pb2.ArraySpec(indexes="7"))
    spec.stdout_path = f"{tmp_path}/out/%a-%t.txt"
    (array_id,) = cluster.client.submit([spec], "ada")
    (task,) = ends_of(cluster, [array_id])
    assert task.reason == "exited with code 3: the input is gone"
    assert (tmp_path / "out" / "7-1.txt").read_text() == f"index 7 of {array_id}_7\n"
    assert cluster.client.task(f"{array_id}_7").id == task.id


def test_paused_task_stands_still_until_it_is_resumed(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "beats"
    (task_id,) = cluster.client.submit(
        [small("sh", "-c", f"while true; do echo beat >> {log}; sleep 0.02; done")], "ada"
    )
    cluster.wait_state(task_id, "RUNNING")
    cluster.until(lambda: log.exists() and log.stat().st_size > 0, "it beats")
    (task,), refused = cluster.client.control([task_id], task_pb2.TASK_ACTION_PAUSE)
    assert (task.state, refused) == (types_pb2.TASK_STATE_PAUSED, [""])
    sizes = [-1, -2]

    def still() -> bool:
        sizes.append(log.stat().st_size)
        return sizes[-1] == sizes[-2] == sizes[-3]

    cluster.until(still, "it stands still")
    size = log.stat().st_size
    cluster.client.control([task_id], task_pb2.TASK_ACTION_RESUME)
    cluster.until(lambda: log.stat().st_size > size, "it goes on")
    cluster.client.control([task_id], task_pb2.TASK_ACTION_PAUSE)
    cluster.client.cancel([task_id], grace_ns=None)
    assert cluster.wait_state(task_id, "CANCELLED").signal == 15


def test_drained_node_gives_its_task_up_at_the_deadline(cluster: Cluster) -> None:
    (task_id,) = cluster.client.submit([small("sleep", "60")], "ada")
    cluster.wait_state(task_id, "RUNNING")
    (node,) = cluster.client.nodes()
    cluster.client.drain(node.id, "repair", "ada", 100_000_000)
    task = cluster.wait_state(task_id, "PENDING")
    assert task.attempt == 1
    cluster.until(
        lambda: cluster.client.node(node.id).scheduling == types_pb2.SCHEDULING_DRAINED, "drained"
    )
    cluster.client.uncordon(node.id, "ada")
    assert cluster.wait_state(task_id, "RUNNING").attempt == 2
    cluster.client.cancel([task_id], grace_ns=0)

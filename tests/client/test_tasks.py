"""Both clients against a real controller and agent."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import mass
import pytest
from support.cluster import Cluster, eater

pytestmark = pytest.mark.e2e

SMALL: mass.TaskOptions = {"mem": "64MiB", "cpus": 0.1}


def test_task_runs_and_its_output_is_read(real: Any, tmp_path: Path) -> None:
    script = "echo $COLOUR; pwd; echo oops >&2"
    task = real.submit(
        ["sh", "-c", script], name="painter", env={"COLOUR": "green"}, cwd=tmp_path, **SMALL
    )
    info = task.result(timeout=20)
    assert (info.state, info.exit_code, info.name) == (mass.TaskState.SUCCEEDED, 0, "painter")
    assert info.memory_request_bytes == 64 << 20
    assert info.node_id == "node-1"
    assert info.submitted_at <= info.started_at <= info.ended_at
    assert b"".join(task.logs(follow=True)) == f"green\n{tmp_path}\n".encode()
    assert b"".join(task.logs(stream="stderr")) == b"oops\n"
    assert task.info() == real.get(task.id) == info
    assert next(real.list([mass.TaskState.SUCCEEDED])) == info


def test_output_is_followed_while_it_is_written(real: Any) -> None:
    task = real.submit(["sh", "-c", "echo one; sleep 0.4; echo two"], **SMALL)
    parts = task.logs(follow=True)
    assert next(parts) == b"one\n"
    assert not task.info().ended
    assert b"".join(parts) == b"two\n"


def test_many_tasks_are_waited_for(real: Any) -> None:
    specs = [mass.TaskSpec(["sh", "-c", f"exit {code}"], **SMALL) for code in (0, 3, 0)]
    tasks = real.submit_many(specs)
    assert [info.exit_code for info in real.wait(tasks, timeout=20)] == [0, 3, 0]
    done = {info.id: info.exit_code for info in real.as_completed(tasks, timeout=20)}
    assert done == {task.id: code for task, code in zip(tasks, (0, 3, 0), strict=True)}
    with pytest.raises(mass.TaskFailed, match="ended FAILED: exited with code 3"):
        tasks[1].result()


def test_wait_gives_up_in_time_and_cancel_ends(real: Any) -> None:
    task = real.submit(["sleep", "60"], **SMALL)
    began = time.monotonic()
    with pytest.raises(mass.WaitTimeout, match=r"after 0\.3 s 1 tasks have not ended") as caught:
        task.wait(timeout=0.3)
    assert 0.3 <= time.monotonic() - began < 2
    assert caught.value.pending_ids == (task.id,)
    assert isinstance(caught.value, TimeoutError)
    task.cancel(grace_seconds=0.2)
    with pytest.raises(mass.TaskCancelled):
        task.result(timeout=20)
    assert task.cancel().state is mass.TaskState.CANCELLED


def test_ends_for_memory_and_for_time_are_told_apart(real: Any) -> None:
    eats = real.submit(eater(200), mem="48MiB", mem_limit="48MiB", requeue=False, cpus=0.1)
    sleeps = real.submit(["sleep", "60"], time_limit="300ms", **SMALL)
    with pytest.raises(mass.TaskOutOfMemory) as caught:
        eats.result(timeout=30)
    assert caught.value.task.oom_cause is mass.OomCause.OWN_LIMIT
    with pytest.raises(mass.TaskTimedOut, match=r"time limit of 0\.3 s"):
        sleeps.result(timeout=20)


def test_map_gives_results_in_the_order_of_the_items(real: Any, tmp_path: Path) -> None:
    results = real.map(
        [sys.executable, "-c", "import sys, time; time.sleep(1 / float(sys.argv[1]))", "{}"],
        [4, 8, 20],
        **SMALL,
    )
    infos = list(results)
    assert [info.command[-1] for info in infos] == ["4", "8", "20"]
    assert all(info.succeeded for info in infos)


def test_controller_names_what_it_refuses(real: Any) -> None:
    with pytest.raises(mass.Refused, match="retries is 101; it must be 0 to 100") as caught:
        real.submit(["true"], retries=101)
    assert caught.value.reason == "INVALID_REQUEST"
    with pytest.raises(mass.NotFound) as unknown:
        real.get("999999")
    assert unknown.value.details == {"task": "999999"}


def test_request_id_returns_the_same_task(real: Any) -> None:
    first, again = (real.submit(["true"], request_id="once", **SMALL) for _ in range(2))
    assert first.id == again.id


def test_wait_outlives_a_restart_of_the_controller(tmp_path: Path) -> None:
    with Cluster(tmp_path) as own:
        own.start_controller()
        own.start_agent()
        own.wait_ready()
        with mass.Client(own.address) as client:
            task = client.submit(["sleep", "1"], **SMALL)
            changes = client.watch([task], timeout=30)
            assert not next(changes).ended
            own.controller.kill()
            own.start_controller()
            assert list(changes)[-1].succeeded

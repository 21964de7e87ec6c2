"""Python calls as tasks of a real controller and agent."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mass
import pytest
from mass import callfile, executor
from support.cluster import Cluster, free_port

from client import calls

pytestmark = pytest.mark.e2e

SMALL: mass.TaskOptions = {"mem": "64MiB", "cpus": 0.1}


@pytest.fixture
def client(cluster: Cluster) -> Iterator[mass.Client]:
    """A client of the real controller."""
    with mass.Client(cluster.address, user="caller") as client:
        yield client


@pytest.fixture
def pool(client: mass.Client, tmp_path: Path) -> Iterator[mass.Executor]:
    """An executor whose files are in the test's directory; nothing is left in it."""
    files = tmp_path / "files"
    files.mkdir()
    with mass.Executor(client, directory=files, **SMALL) as pool:
        yield pool
    assert list(files.iterdir()) == []


def test_call_runs_in_a_task_of_its_name(pool: mass.Executor, client: mass.Client) -> None:
    future = pool.submit(calls.where)
    pid, task_id = future.result(timeout=20)
    assert pid != os.getpid()
    info = client.get(task_id)
    assert (info.name, info.category, info.user) == ("where", "where", "caller")
    assert info.memory_request_bytes == 64 << 20
    assert pool.submit(calls.power, 2, exponent=10).result(timeout=20) == 1024


def test_map_keeps_the_order_and_chunks_share_a_task(pool: mass.Executor) -> None:
    assert list(pool.map(calls.power, range(6), [3] * 9)) == [0, 1, 8, 27, 64, 125]
    placed = list(pool.map(calls.power, range(7), chunksize=3))
    assert placed == [0, 1, 4, 9, 16, 25, 36]
    pids = [pid for pid, _ in pool.map(lambda_free_where, range(4), chunksize=2)]
    assert pids[0] == pids[1] != pids[2] == pids[3]
    with pytest.raises(ValueError, match="chunksize 0 is below the bound of 1"):
        pool.map(calls.power, [1], chunksize=0)


def lambda_free_where(_: int) -> tuple[int, str]:
    """Take an argument that `where` does not."""
    return calls.where()


def test_error_of_a_call_comes_back_with_its_traceback(
    pool: mass.Executor, client: mass.Client
) -> None:
    error = pool.submit(calls.divide, 0).exception(timeout=20)
    assert isinstance(error, ZeroDivisionError)
    (note,) = error.__notes__
    assert "on node node-1:" in note
    assert "return 1 / number" in note
    task_id = note.split()[2]
    info = client.get(task_id)
    assert (info.state, info.exit_code) == (mass.TaskState.FAILED, 1)
    assert b"ZeroDivisionError" in b"".join(client.logs(task_id, stream="stderr"))


def test_ends_that_are_no_return_become_their_errors(pool: mass.Executor) -> None:
    futures = {
        name: pool.submit(function, *arguments)
        for name, function, arguments in (
            ("exit", calls.leave, (3,)),
            ("crash", calls.crash, ()),
            ("odd", calls.odd, ()),
            ("unpicklable", calls.unpicklable, ()),
        )
    }
    errors: dict[str, Any] = {name: f.exception(timeout=20) for name, f in futures.items()}
    assert isinstance(errors["exit"], SystemExit)
    assert errors["exit"].code == 3
    assert type(errors["crash"]) is mass.TaskFailed
    assert errors["crash"].task.signal == 11
    assert isinstance(errors["odd"], mass.CallError)
    assert "error Odd: veryodd cannot be pickled" in str(errors["odd"])
    assert isinstance(errors["unpicklable"], mass.CallError)
    assert "result function cannot be pickled" in str(errors["unpicklable"])


def test_attempt_killed_while_writing_leaves_nothing(pool: mass.Executor, tmp_path: Path) -> None:
    error = pool.submit(calls.leave_part, str(tmp_path / "files")).exception(timeout=20)
    assert type(error) is mass.TaskFailed  # and the fixture looks into the directory


def test_out_of_memory_and_time_limit_are_typed(client: mass.Client, tmp_path: Path) -> None:
    with mass.Executor(
        client, directory=tmp_path, mem="48MiB", mem_limit="48MiB", cpus=0.1, requeue=False
    ) as pool:
        error = pool.submit(calls.eat, 200).exception(timeout=30)
    assert isinstance(error, mass.TaskOutOfMemory)
    assert error.task.oom_cause is mass.OomCause.OWN_LIMIT
    with mass.Executor(client, directory=tmp_path, time_limit="1s", mem="64MiB", cpus=0.1) as pool:
        error = pool.submit(calls.nap, 60).exception(timeout=30)
    assert isinstance(error, mass.TaskTimedOut)


def test_failed_call_is_tried_again(client: mass.Client, tmp_path: Path) -> None:
    with mass.Executor(client, directory=tmp_path, retries=2, mem="64MiB", cpus=0.1) as pool:
        future = pool.submit(calls.second_time_lucky, str(tmp_path / "tries"))
        assert future.result(timeout=30) == "after 3"


def test_future_is_cancelled_until_a_node_has_its_task(client: mass.Client, tmp_path: Path) -> None:
    with mass.Executor(client, directory=tmp_path, mem="1TiB", name="too large") as pool:
        future = pool.submit(calls.nap, 60)
        wait_for(lambda: named(client, "too large"))
        (info,) = named(client, "too large")
        assert info.state is mass.TaskState.PENDING
        assert future.cancel()
        done, _ = concurrent.futures.wait([future], timeout=5)
        assert done == {future}
    assert client.get(info.id).state is mass.TaskState.CANCELLED
    assert list(tmp_path.iterdir()) == []


def test_shutdown_can_cancel_running_calls(client: mass.Client, tmp_path: Path) -> None:
    pool = mass.Executor(client, directory=tmp_path, name="napper", mem="64MiB", cpus=0.1)
    running = pool.submit(calls.nap, 60)
    wait_for(running.running)
    assert not running.cancel()
    pool.shutdown(cancel_futures=True)
    assert isinstance(running.exception(timeout=0), mass.TaskCancelled)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(calls.nap, 1)
    assert list(tmp_path.iterdir()) == []


def test_shutdown_without_waiting_still_settles_futures(
    client: mass.Client, tmp_path: Path
) -> None:
    pool = mass.Executor(client, directory=tmp_path, **SMALL)
    future = pool.submit(calls.nap, 0.3)
    pool.shutdown(wait=False)
    assert not future.done()
    assert future.result(timeout=20) == 0.3


def test_one_thread_and_few_streams_serve_all_futures(client: mass.Client, tmp_path: Path) -> None:
    before = threading.active_count()
    pool = mass.Executor(client, directory=tmp_path, mem="1TiB", mem_exact=True)
    for count in range(1, 33):
        pool.submit(calls.nap, 0)
        wait_for(lambda count=count: pool._tasks_open == count)
    assert 1 <= len(pool._watches) <= 6
    assert sum(len(watch.open) for watch in pool._watches) == 32
    own = [thread for thread in threading.enumerate() if thread.name == "mass-executor"]
    assert len(own) == 1
    # gRPC keeps one thread of its own beside it, however many calls there are.
    assert threading.active_count() - before <= 2
    pool.shutdown(cancel_futures=True)
    assert list(tmp_path.iterdir()) == []


def test_calls_beyond_the_bound_wait_their_turn(
    client: mass.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "TASKS_OPEN_MAX", 2)
    monkeypatch.setattr(executor, "CALLS_OPEN_MAX", 5)
    with mass.Executor(client, directory=tmp_path, name="bounded", mem="64MiB", cpus=0.1) as pool:
        futures = [pool.submit(calls.nap, 0.3) for _ in range(5)]
        with pytest.raises(mass.Refused, match="5 calls are open") as caught:
            pool.submit(calls.nap, 0.3)
        assert caught.value.reason == "CALLS_OPEN_MAX"
        assert futures[4].cancel()
        wait_for(futures[0].running)
        assert len(named(client, "bounded")) <= 2
        assert [f.result(timeout=20) for f in futures[:4]] == [0.3] * 4
    assert len([i for i in client.list() if i.name == "bounded"]) == 4


def test_call_that_cannot_be_sent_is_refused_at_once(pool: mass.Executor) -> None:
    with pytest.raises(mass.CallError, match=r"the call of .*<lambda> cannot be pickled"):
        pool.submit(lambda: 1)
    with pytest.raises(mass.CallError, match="the call of power cannot be pickled"):
        pool.submit(calls.power, threading.Lock())  # type: ignore[arg-type]
    with pytest.raises(mass.InvalidValue, match="mem '5' has no unit"):
        mass.Executor(mem="5")


def test_missing_outcome_names_the_directory(
    client: mass.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "OUTCOME_WAIT_SECONDS", 0.2)
    with mass.Executor(client, directory=tmp_path, python="/bin/true", **SMALL) as pool:
        error = pool.submit(calls.nap, 0).exception(timeout=20)
    assert isinstance(error, mass.CallError)
    assert f"its outcome is not at {tmp_path}" in str(error)
    with mass.Executor(client, directory=tmp_path, python="/bin/false", **SMALL) as pool:
        error = pool.submit(calls.nap, 0).exception(timeout=20)
    assert type(error) is mass.TaskFailed
    assert error.task.exit_code == 1


def test_unreachable_controller_fails_the_futures(tmp_path: Path) -> None:
    with (
        mass.Client(f"127.0.0.1:{free_port()}", patience_seconds=0.2) as client,
        mass.Executor(client, directory=tmp_path) as pool,
    ):
        futures = [pool.submit(calls.nap, 0) for _ in range(3)]
        assert all(isinstance(f.exception(timeout=10), mass.Unreachable) for f in futures)
    assert list(tmp_path.iterdir()) == []


def test_own_directory_is_below_the_current_one_and_removed(
    client: mass.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with mass.Executor(client, **SMALL) as pool:
        future = pool.submit(calls.nap, 0.2)
        (directory,) = tmp_path.iterdir()
        assert directory.name.startswith(".mass-calls-")
        assert directory.stat().st_mode & 0o777 == 0o700
        (call,) = directory.iterdir()
        assert call.stat().st_mode & 0o777 == 0o600
        future.result(timeout=20)
    assert list(tmp_path.iterdir()) == []


MAIN = """
import dataclasses, mass

@dataclasses.dataclass
class Point:
    x: int

def moved(point):
    return Point(point.x + 1)

{guard}
    pool = mass.Executor(mem="64MiB", cpus=0.1)
    print(pool.submit(moved, Point(1)).result(timeout=30))
    late = pool.submit(print, "late")
    late.add_done_callback(lambda done: print("done", done.exception()))
"""


def run_main(cluster: Cluster, path: Path, guard: str) -> subprocess.CompletedProcess[str]:
    """Run a script that makes calls of its own functions and does not shut down."""
    path.write_text(MAIN.replace("{guard}", guard))
    return subprocess.run(
        [sys.executable, str(path)],
        cwd=path.parent,
        env={**os.environ, "MASS_CONTROLLER": cluster.address},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_functions_and_classes_of_the_main_module_travel(cluster: Cluster, tmp_path: Path) -> None:
    ran = run_main(cluster, tmp_path / "work.py", "if __name__ == '__main__':")
    # The interpreter's end waits for what is open, as with the standard library's executors.
    assert (ran.stdout, ran.stderr, ran.returncode) == ("Point(x=2)\ndone None\n", "", 0)
    assert [path.name for path in tmp_path.iterdir()] == ["work.py"]


def test_main_module_without_a_guard_does_not_multiply(cluster: Cluster, tmp_path: Path) -> None:
    ran = run_main(cluster, tmp_path / "work.py", "if True:")
    assert "CallError: a task imports the main module for its call" in ran.stderr
    assert ran.returncode == 1


def test_interactive_function_is_refused(cluster: Cluster) -> None:
    script = "import mass\ndef f(): pass\nmass.Executor().submit(f)"
    words = [sys.executable, "-c", script]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "f or one of its arguments is defined in an interactive session" in ran.stderr


def test_older_outcome_is_not_taken_for_a_later_attempts(tmp_path: Path) -> None:
    path = tmp_path / "1.call"
    path.write_bytes(callfile.call_bytes(os._exit, (7,), {}))
    outcome = path.with_suffix(".outcome")
    outcome.write_bytes(b"of an earlier attempt")
    ran = subprocess.run([sys.executable, "-m", "mass.call", str(path)], check=False)
    assert ran.returncode == 7
    assert not outcome.exists()
    with pytest.raises(FileNotFoundError):
        callfile.read_outcome(outcome)
    outcome.write_bytes(b"garbage")
    with pytest.raises(mass.CallError, match="cannot be unpickled"):
        callfile.read_outcome(outcome)


def named(client: mass.Client, name: str) -> list[mass.TaskInfo]:
    """Return the open tasks of a name."""
    return [info for info in client.list() if info.name == name and not info.ended]


def wait_for(condition: Any, seconds_max: float = 20.0) -> None:
    """Return once the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds_max
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)

"""The guard with real processes in a small node: who gives way, who lives on, and what is recorded.

Each node is far smaller than the machine, so that nothing here can fill the machine itself.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from e2e.conftest import MakeCluster
from mass.v1 import types_pb2
from support.cluster import AGENT_ENTRY, MIB, Cluster, eater
from support.groups import Container, container, why_no_groups

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(why_no_groups()), reason=why_no_groups()),
]

NODE_MIB = 512
OLD_MIB = 60
# Takes argv[1] MiB at argv[2] MiB/s, and holds them for argv[3] seconds; ignores SIGTERM when
# argv[4] says so.
GROWER = (
    "import mmap, signal, sys, time\n"
    "size, rate, hold = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])\n"
    "if sys.argv[4] == 'stubborn': signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "block, chunk = mmap.mmap(-1, size << 20), b'x' * (1 << 20)\n"
    "print('up', flush=True)\n"
    "began = time.monotonic()\n"
    "for mib in range(size):\n"
    "    block.write(chunk)\n"
    "    time.sleep(max(0.0, began + mib / rate - time.monotonic()))\n"
    "print('grown', flush=True)\n"
    "time.sleep(hold)\n"
)


def grower(
    size_mib: int, mib_per_second: float, hold_seconds: float = 0.0, mood: str = ""
) -> list[str]:
    """Return the command of a program that grows at a pace."""
    words = (str(size_mib), str(mib_per_second), str(hold_seconds), mood or "meek")
    return [sys.executable, "-S", "-c", GROWER, *words]


def small_node(cluster: Cluster, *flags: str) -> None:
    """Start a controller whose tasks may outgrow their requests, and a node of NODE_MIB."""
    cluster.start_controller(MASS_MEMORY_LIMITS="elastic")
    cluster.start_agent("small", "--memory", f"{NODE_MIB}MiB", *flags)
    cluster.wait_ready()


def old_tasks(cluster: Cluster, seconds: float) -> list[str]:
    """Return two tasks that run, hold their memory and ask for no more."""
    ids = cluster.submit(
        *eater(OLD_MIB, seconds), count=2, memory_request_bytes=(OLD_MIB + 10) * MIB
    )
    for task_id in ids:
        cluster.wait_state(task_id, "RUNNING")
        cluster.until(lambda i=task_id: b"ate" in cluster.output(i)[0], "it holds its memory")  # type: ignore[misc]
    return ids


def assert_untouched(cluster: Cluster, ids: list[str]) -> None:
    """Check that the tasks have ended well, at their first attempt."""
    for task in cluster.wait_ended(ids):
        assert (task.state, task.attempt) == (types_pb2.TASK_STATE_SUCCEEDED, 1), task


def until_ended_by_the_guard(cluster: Cluster, task_id: str) -> None:
    """Wait until the guard has ended an attempt of the task, and see that people are told."""
    cluster.until(
        lambda: cluster.client.task(task_id).oom_cause == types_pb2.OOM_CAUSE_GUARD,
        f"an attempt of task {task_id} is ended by the guard\n{cluster.client.task(task_id)}",
    )
    # It may run again already; what the guard did stays.
    why = cluster.mass("task", "why", task_id).out
    assert re.search(r"guard: (ASK|KILL) at [\d.]+ MiB of [\d.,]+ (MiB|GiB)", why), why


def assert_no_kernel_kill(cluster: Cluster) -> None:
    """Check that nothing was left to the kernel."""
    assert "kernel kill" not in cluster.agents["small"].log()
    assert cluster.agents["small"].is_running()


def test_task_that_takes_two_gibibytes_a_second_gives_way_and_the_others_live(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster()
    small_node(cluster)
    old = old_tasks(cluster, 3.0)
    hog = cluster.submit_one(*grower(4_096, 2_048), memory_request_bytes=64 * MIB)
    until_ended_by_the_guard(cluster, hog)
    assert_untouched(cluster, old)
    assert_no_kernel_kill(cluster)
    cluster.client.cancel([hog], 0)
    task = cluster.wait_state(hog, "CANCELLED")
    assert task.memory_peak_bytes <= NODE_MIB * MIB
    # The node is as good as before.
    assert cluster.run(*eater(300, 0.0), memory_request_bytes=310 * MIB).exit_code == 0


def test_child_killed_for_memory_below_a_shell_that_exits_0_is_the_cause(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster()
    small_node(cluster)
    old = old_tasks(cluster, 3.0)
    program, *rest = eater(300)
    task = cluster.run(
        "sh", "-c", '"$0" "$@"; exit 0', program, *rest,
        memory_request_bytes=100 * MIB, memory_limit_bytes=100 * MIB,
    )  # fmt: skip
    assert task.state == types_pb2.TASK_STATE_OUT_OF_MEMORY, task
    assert task.oom_cause == types_pb2.OOM_CAUSE_CHILD_ONLY
    assert task.exit_code == 0
    assert_untouched(cluster, old)
    assert cluster.agents["small"].is_running()


def test_task_that_ignores_sigterm_is_ended_nevertheless(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    small_node(cluster)
    old = old_tasks(cluster, 3.0)
    stubborn = grower(4_096, 200, mood="stubborn")
    # Slow enough that the guard may ask it first; a child of a shell that ignores the signal too.
    hog = cluster.submit_one(
        "sh", "-c", 'trap \'\' TERM; "$0" "$@"; exit 1', *stubborn, memory_request_bytes=64 * MIB
    )
    until_ended_by_the_guard(cluster, hog)
    assert_untouched(cluster, old)
    assert_no_kernel_kill(cluster)
    assert "step=KILL" in cluster.agents["small"].log()
    cluster.client.cancel([hog], 0)


@pytest.fixture
def box() -> Iterator[Container]:
    """Give a container of 1 GiB to run an agent in."""
    with container(1_024) as made:
        yield made


def test_hog_outside_of_mass_makes_the_youngest_give_way_until_it_is_gone(
    box: Container, make_cluster: MakeCluster
) -> None:
    cluster = make_cluster()
    cluster.start_controller(MASS_MEMORY_LIMITS="elastic")
    join = f"import os, runpy; open('{box.agent}/cgroup.procs', 'w').write(str(os.getpid()));"
    cluster.start_agent(
        "small", entry=("-c", f"{join} runpy.run_module('{AGENT_ENTRY[1]}', run_name='__main__')")
    )
    cluster.wait_ready()
    assert cluster.client.node("small").memory_total_bytes == 1_024 * MIB
    old = old_tasks(cluster, 3.0)
    young = cluster.submit_one(*grower(500, 100), memory_request_bytes=64 * MIB)
    cluster.wait_state(young, "RUNNING")
    joined = ["sh", "-c", f'echo $$ > {box.others}/cgroup.procs; exec "$0" "$@"']
    with subprocess.Popen([*joined, *grower(450, 300, 60)], stdout=subprocess.PIPE) as hog:
        try:
            until_ended_by_the_guard(cluster, young)
            assert hog.poll() is None, "it is not MASS's to end"
        finally:
            hog.kill()
    assert_untouched(cluster, old)
    (task,) = cluster.wait_ended([young])
    assert (task.state, task.failures) == (types_pb2.TASK_STATE_SUCCEEDED, 0), task
    assert task.attempt > 1
    assert_no_kernel_kill(cluster)


def test_guard_acts_while_the_controller_is_gone_and_the_end_is_told_later(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster()
    small_node(cluster)
    agent = cluster.agents["small"]
    old = old_tasks(cluster, 4.0)
    script = 'while [ ! -e "$0" ]; do sleep 0.05; done; exec "$@"'
    go = cluster.directory / "go"
    hog = cluster.submit_one(
        "sh", "-c", script, str(go), *grower(4_096, 1_000), memory_request_bytes=64 * MIB
    )
    cluster.wait_state(hog, "RUNNING")
    cluster.controller.kill()
    go.touch()
    cluster.until(lambda: "step=KILL" in agent.log(), "the guard ends the task alone")
    cluster.start_controller(MASS_MEMORY_LIMITS="elastic")
    until_ended_by_the_guard(cluster, hog)
    assert_untouched(cluster, old)
    assert_no_kernel_kill(cluster)
    cluster.client.cancel([hog], 0)


def test_task_that_another_memory_killer_ends_is_recorded_so(
    box: Container, make_cluster: MakeCluster
) -> None:
    cluster = make_cluster()
    cluster.start_controller(MASS_MEMORY_LIMITS="elastic")
    join = f"import os, runpy; open('{box.agent}/cgroup.procs', 'w').write(str(os.getpid()));"
    cluster.start_agent(
        "small", entry=("-c", f"{join} runpy.run_module('{AGENT_ENTRY[1]}', run_name='__main__')")
    )
    cluster.wait_ready()
    pids = cluster.directory / "pids"
    victim = cluster.submit_one("sh", "-c", f"echo $$ > {pids}; exec sleep 60")
    calm = cluster.submit_one("sh", "-c", "kill -9 $$")
    task = cluster.wait_state(calm, "FAILED")
    assert task.oom_cause == types_pb2.OOM_CAUSE_UNSPECIFIED
    cluster.wait_state(victim, "RUNNING")
    cluster.until(lambda: pids.exists() and pids.read_text().strip(), "its process is known")
    joined = ["sh", "-c", f'echo $$ > {box.others}/cgroup.procs; exec "$0" "$@"']
    with subprocess.Popen([*joined, *grower(880, 2_000, 60)], stdout=subprocess.PIPE) as hog:
        try:
            assert hog.stdout is not None
            assert [hog.stdout.readline(), hog.stdout.readline()] == [b"up\n", b"grown\n"]
            cluster.until(
                lambda: cluster.client.node("small").memory_available_bytes < 120 * MIB,
                "the agent has seen that memory is short",
            )
            os.kill(int(pids.read_text()), signal.SIGKILL)
            cluster.until(
                lambda: cluster.client.task(victim).oom_cause == types_pb2.OOM_CAUSE_OUTSIDE,
                f"the killer is recorded\n{cluster.client.task(victim)}",
            )
        finally:
            hog.kill()

"""Measures what one task of `true` costs: CPU time of each process, and tasks per second.

A controller and an agent with two slots are started on the loopback; one call submits all tasks,
each in a group of its own, its reports saved and synced. CPU time stays valid beside other work on
the machine; tasks per second do not.

    python benchmarks/throughput.py [--tasks N] [--slots N] [--json FILE]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from _figures import Figure, children_cpu_seconds, cpu_seconds, parser, report
from support.cluster import MIB, Cluster

WARM_UP = 20
WAIT_SECONDS_MAX = 600.0
LOOK_SECONDS = 0.2  # each look is a call that the controller answers
SUBMIT_MAX = 10_000


def main() -> int:
    """Measure and tell."""
    arguments = parser("Measure CPU time per task of `true`.")
    arguments.add_argument("--tasks", type=int, default=2_000, help="how many tasks")
    arguments.add_argument("--slots", type=int, default=2, help="how many run at once")
    arguments.add_argument("--directory", type=Path, help="where data and work directories lie")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="mass-throughput-", dir=chosen.directory) as directory:
        figures = measure(Path(directory), chosen.tasks, chosen.slots)
    return report("throughput", figures, chosen.json, tasks=chosen.tasks, slots=chosen.slots)


def measure(directory: Path, tasks: int, slots: int) -> list[Figure]:
    """Return the figures of one run."""
    with Cluster(directory) as cluster:
        cluster.start_controller()
        cluster.start_agent("node-1", "--cpus", str(slots))
        cluster.wait_ready()
        cluster.wait_ended(cluster.submit("true", count=WARM_UP, cpus=1.0))
        pids = cluster.controller.pid, cluster.agents["node-1"].pid
        before, began = _costs(*pids), time.perf_counter()
        ids = cluster.submit("true", count=tasks, cpus=1.0, memory_request_bytes=32 * MIB)
        accepted = time.perf_counter()
        _wait_last(cluster, ids[-1])
        ended = time.perf_counter()
        after = _costs(*pids)
        states = {task.exit_code for task in cluster.wait_ended(ids)}
    assert states == {0}, f"tasks ended with {states}"
    controller, agent, children, client = (
        (now - then) * 1e3 / tasks for then, now in zip(before, after, strict=True)
    )
    return [
        Figure("controller", controller, "ms CPU/task", target=0.4),
        Figure("agent", agent, "ms CPU/task"),
        Figure("launchers and tasks", children, "ms CPU/task"),
        Figure("client", client, "ms CPU/task"),
        Figure("all processes", controller + agent + children, "ms CPU/task", target=2.5),
        Figure("rate", tasks / (ended - began), "tasks/s"),
        Figure("submit answered after", (accepted - began) * 1e3, "ms"),
    ]


def _costs(controller: int, agent: int) -> tuple[float, float, float, float]:
    """Return CPU seconds of the controller, the agent, its children, and this process."""
    return (
        cpu_seconds(controller),
        cpu_seconds(agent),
        children_cpu_seconds(agent),
        time.process_time(),
    )


def _wait_last(cluster: Cluster, task_id: str) -> None:
    """Return when the last task of the queue has ended; looking costs the controller little."""
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not cluster.client.task(task_id).HasField("ended_at"):
        if time.monotonic() > deadline:
            raise SystemExit(f"task {task_id} has not ended\n{cluster.logs()}")
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    sys.exit(main())

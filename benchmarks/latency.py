"""Measures the time from a submit to the first instruction of its task, on an idle cluster.

A controller and an agent are started on the loopback; each task is `sh -c 'echo >FIFO'` in a group
of its own, submitted by a connected gRPC client, one after another. Every submit and every
assignment is synced to disk first.

    python benchmarks/latency.py [--count N] [--pause SECONDS] [--json FILE]
"""

from __future__ import annotations

import os
import selectors
import sys
import tempfile
import time
from pathlib import Path

from _figures import Figure, parser, percentiles, report
from support.cluster import Cluster

WAIT_SECONDS_MAX = 10.0
TARGETS_MS = {"started p50": 6.0, "started p99": 15.0}


def main() -> int:
    """Measure and tell."""
    arguments = parser("Measure submit to started.")
    arguments.add_argument("--count", type=int, default=200, help="how many tasks")
    arguments.add_argument("--pause", type=float, default=0.1, help="seconds between two tasks")
    arguments.add_argument("--warm-up", type=int, default=20, help="tasks before them")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="mass-latency-") as directory:
        accepted_ms, started_ms = measure(
            Path(directory), chosen.count, chosen.pause, chosen.warm_up
        )
    figures = [
        Figure(f"submit to {name}", value, "ms", TARGETS_MS.get(name))
        for what, values in (("accepted", accepted_ms), ("started", started_ms))
        for name, value in ((f"{what} {cut}", ms) for cut, ms in percentiles(values).items())
    ]
    return report("latency", figures, chosen.json, count=chosen.count, pause=chosen.pause)


def measure(
    directory: Path, count: int, pause_seconds: float, warm_up: int
) -> tuple[list[float], list[float]]:
    """Return the milliseconds from each submit to its answer, and to its task's first word."""
    fifo = directory / "fifo"
    os.mkfifo(fifo)
    # Held open for writing too, so that the end of a task is no end of the file.
    reading = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    accepted, started = [], []
    with Cluster(directory) as cluster, selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        cluster.start_controller()
        cluster.start_agent()
        cluster.wait_ready()
        for number in range(warm_up + count):
            time.sleep(pause_seconds)
            began_at = time.perf_counter()
            task_id = cluster.submit_one("sh", "-c", f"echo >{fifo}")
            accepted_at = time.perf_counter()
            if not selector.select(WAIT_SECONDS_MAX):
                raise SystemExit(f"task {task_id} has not started\n{cluster.logs()}")
            started_at = time.perf_counter()
            os.read(reading, 16)
            cluster.wait_state(task_id, "SUCCEEDED")
            if number >= warm_up:
                accepted.append((accepted_at - began_at) * 1e3)
                started.append((started_at - began_at) * 1e3)
    os.close(reading)
    return accepted, started


if __name__ == "__main__":
    sys.exit(main())

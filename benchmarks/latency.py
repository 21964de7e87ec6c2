"""Measures the time from a submit to the first instruction of its task, on an idle cluster.

A controller and an agent are started on the loopback; each task is `sh -c 'echo >FIFO'` in a group
of its own, submitted by a connected gRPC client, one after another. Every submit and every
assignment is synced to disk first. Prints percentiles in milliseconds, and where the time goes.

    python benchmarks/latency.py [--count N] [--pause SECONDS] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import statistics
import sys
import tempfile
import time
from pathlib import Path

# The processes are started the way the end-to-end tests start them.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.cluster import Cluster

WARM_UP = 20
WAIT_SECONDS_MAX = 10.0
TARGET_P50_MS, TARGET_P99_MS = 6.0, 15.0


def main() -> int:
    """Measure, print, and return 1 where the target is not met."""
    parser = argparse.ArgumentParser(description="Measure submit to started.")
    parser.add_argument("--count", type=int, default=200, help="how many tasks")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between two tasks")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mass-latency-") as directory:
        accepted_ms, started_ms = measure(Path(directory), chosen.count, chosen.pause)
    result = {"accepted": percentiles(accepted_ms), "started": percentiles(started_ms)}
    if chosen.json:
        print(json.dumps({"count": chosen.count, "milliseconds": result}))
    else:
        for name, row in result.items():
            print(f"submit -> {name:8}", *(f"{key} {value:6.2f} ms" for key, value in row.items()))
    met = result["started"]["p50"] <= TARGET_P50_MS and result["started"]["p99"] <= TARGET_P99_MS
    if not met:
        print(f"above the target: p50 {TARGET_P50_MS} ms, p99 {TARGET_P99_MS} ms", file=sys.stderr)
    return 0 if met else 1


def measure(directory: Path, count: int, pause_seconds: float) -> tuple[list[float], list[float]]:
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
        for number in range(WARM_UP + count):
            time.sleep(pause_seconds)
            began_at = time.perf_counter()
            task_id = cluster.submit_one("sh", "-c", f"echo >{fifo}")
            accepted_at = time.perf_counter()
            if not selector.select(WAIT_SECONDS_MAX):
                raise SystemExit(f"task {task_id} has not started\n{cluster.logs()}")
            started_at = time.perf_counter()
            os.read(reading, 16)
            cluster.wait_state(task_id, "SUCCEEDED")
            if number >= WARM_UP:
                accepted.append((accepted_at - began_at) * 1e3)
                started.append((started_at - began_at) * 1e3)
    os.close(reading)
    return accepted, started


def percentiles(values: list[float]) -> dict[str, float]:
    """Return p50, p90, p99 and the largest."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {
        "p50": round(cuts[49], 3),
        "p90": round(cuts[89], 3),
        "p99": round(cuts[98], 3),
        "max": round(max(values), 3),
    }


if __name__ == "__main__":
    sys.exit(main())

"""Measures what one task of `true` costs in other schedulers, beside MASS on the same machine.

Two tasks at once, one call (or pipe) that submits all. What is there is measured: a bare loop of
subprocess.run, xargs, GNU parallel. With --install HyperQueue and Dask come from the package index
into an environment that is thrown away afterwards. CPU time counts all processes of the peer.

    python benchmarks/peers.py [--tasks N] [--install] [--json FILE]
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path

import throughput
from _figures import Figure, parser, report

SECONDS_MAX = 600.0
# Each runs argv[1] tasks and prints [seconds, CPU seconds of all its processes] as JSON; `spent`
# is the CPU time of this process and of its ended children.
COMMON = """
import json, resource, sys, time
def spent():
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))
count = int(sys.argv[1])
"""
DASK = (
    COMMON
    + """
import subprocess
from pathlib import Path
from distributed import Client, LocalCluster
def of(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / 100
def task(_):
    subprocess.run(["true"])
if __name__ == "__main__":
    with LocalCluster(2, processes=True, threads_per_worker=1, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            client.gather(client.map(task, range(-20, 0)))
            workers = [worker.pid for worker in cluster.workers.values()]
            cpu, began = spent() + sum(map(of, workers)), time.perf_counter()
            client.gather(client.map(task, range(count)))
            seconds = time.perf_counter() - began
            print(json.dumps([seconds, spent() + sum(map(of, workers)) - cpu]))
"""
)
HYPERQUEUE = (
    COMMON
    + """
from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig
with LocalCluster() as cluster:
    cluster.start_worker(WorkerConfig(cores=2))
    client = cluster.client()
    def run(tasks):
        job = Job()
        for _ in range(tasks):
            job.program(["true"], stdout=None, stderr=None)
        client.wait_for_jobs([client.submit(job)])
    run(20)
    cpu, began = spent(), time.perf_counter()
    run(count)
    print(json.dumps([time.perf_counter() - began, spent() - cpu]))
"""
)
INSTALLED = {
    "Dask": (("distributed",), DASK),
    "HyperQueue": (("hyperqueue",), HYPERQUEUE),
}


def main() -> int:
    """Measure and tell."""
    arguments = parser("Measure `true` in other schedulers and in MASS.")
    arguments.add_argument("--tasks", type=int, default=1_000, help="how many tasks")
    arguments.add_argument("--install", action="store_true", help="install HyperQueue and Dask")
    chosen = arguments.parse_args()
    count = chosen.tasks
    figures = both("subprocess.run, one after another", count, lambda: serial(count))
    figures += both("xargs -P2", count, lambda: piped(count, "xargs", "-P2", "-n1", "true"))
    if shutil.which("parallel"):
        command = ("parallel", "-j2", "true")
        figures += both("GNU parallel -j2", count, lambda: piped(count, *command))
    with tempfile.TemporaryDirectory(prefix="mass-peers-") as directory:
        if chosen.install:
            for name, (packages, program) in INSTALLED.items():
                figures += installed(Path(directory, name), name, packages, program, count)
        for figure in throughput.measure(Path(directory), count, slots=2):
            if figure.name in ("all processes", "rate"):
                figures.append(Figure("MASS", figure.value, figure.unit))
    return report("peers", figures, chosen.json, tasks=count)


def both(name: str, count: int, run: Callable[[], None]) -> list[Figure]:
    """Run something and return its CPU time and rate, from what its processes took."""
    cpu, began = _cpu_seconds(), time.perf_counter()
    run()
    return _figures(name, count, time.perf_counter() - began, _cpu_seconds() - cpu)


def serial(count: int) -> None:
    """Run `true` so many times, one after another."""
    for _ in range(count):
        subprocess.run(["true"], check=True)


def piped(count: int, *command: str) -> None:
    """Run a command that starts `true` for each line of its input."""
    lines = "".join(f"{number}\n" for number in range(count))
    quiet = subprocess.DEVNULL
    subprocess.run(command, input=lines, text=True, check=True, stdout=quiet, stderr=quiet)


def installed(
    place: Path, name: str, packages: tuple[str, ...], program: str, count: int
) -> list[Figure]:
    """Install a peer into an environment of its own and run its program there."""
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    script = place / "peer.py"
    script.write_text(program, encoding="utf-8")
    # Where modules of this one are found is no matter of the peer's.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ran = subprocess.run(
        [python, script, str(count)], check=True, capture_output=True, text=True,
        timeout=SECONDS_MAX, cwd=place, env=environment,
    )  # fmt: skip
    seconds, cpu_seconds = json.loads(ran.stdout.splitlines()[-1])
    return _figures(name, count, seconds, cpu_seconds)


def _figures(name: str, count: int, seconds: float, cpu_seconds: float) -> list[Figure]:
    return [
        Figure(name, cpu_seconds * 1e3 / count, "ms CPU/task"),
        Figure(name, count / seconds, "tasks/s"),
    ]


def _cpu_seconds() -> float:
    """Return the CPU time of this process and its ended children."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, kinds))


if __name__ == "__main__":
    sys.exit(main())

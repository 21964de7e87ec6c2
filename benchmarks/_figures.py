"""What all benchmarks share: arguments, the machine they ran on, and figures as table and JSON.

Targets are told, never enforced by the exit code: a busy machine is no error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
# Clusters are started the way the end-to-end tests start them.
sys.path.insert(0, str(ROOT / "tests"))

LIBRARIES = ("grpcio", "protobuf", "numpy", "uvloop", "SQLAlchemy")
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Figure:
    """One number with its unit; `target` is the most (or, with `at_least`, the least) it may be."""

    name: str
    value: float
    unit: str
    target: float | None = None
    at_least: bool = False

    @property
    def verdict(self) -> str:
        """Say whether the target is met; nothing where there is none."""
        if self.target is None:
            return ""
        met = self.value >= self.target if self.at_least else self.value <= self.target
        sign = ">=" if self.at_least else "<="
        return f"{'met' if met else 'MISSED'} ({sign} {self.target:g})"


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with what every benchmark takes."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return made


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, kernel, versions, load."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / (1 << 30), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "mass": version("mass-scheduler"),
        "load_1_minute": round(os.getloadavg()[0], 2),
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def report(benchmark: str, figures: Sequence[Figure], path: Path | None, **parameters: Any) -> int:
    """Print the figures as a table, write them as JSON, and return the exit code, 0."""
    here = machine()
    name_width = max(len(figure.name) for figure in figures)
    unit_width = max(len(figure.unit) for figure in figures)
    for figure in figures:
        line = f"{figure.name:{name_width}}  {figure.value:>10.3f} {figure.unit:{unit_width}}"
        print(f"{line}  {figure.verdict}".rstrip())
    print(
        f"{here['cores']} cores {here['processor']}, Linux {here['kernel']}, Python"
        f" {here['python']}, load {here['load_1_minute']}"
    )
    path = path or ROOT / "benchmarks" / "results" / f"{benchmark}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(figure) | {"verdict": figure.verdict} for figure in figures]
    written = {
        "benchmark": benchmark, "parameters": parameters, "machine": here, "figures": rows
    }  # fmt: skip
    path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return 0


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return p50, p90, p99 and the largest; of at least two values."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "max": max(values)}


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process by itself, to the nanosecond; not its children's."""
    return time.clock_gettime((~pid << 3) | 2)  # its CPU clock, as clock_getcpuclockid makes it


def children_cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process's children: of ended and collected ones in the kernel's
    ticks, and of those that live."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    living = 0.0
    for child in psutil.Process(pid).children():
        with contextlib.suppress(OSError):  # it has just ended
            living += cpu_seconds(child.pid)
    return (int(fields[13]) + int(fields[14])) * TICK_S + living


def median_of(values: Iterable[float]) -> float:
    """Return the median."""
    return statistics.median(list(values))

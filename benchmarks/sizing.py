"""Replays traces of tasks against MASS's sizing, from a cold start, one workflow at a time.

A task is sized with what was learned of those that succeeded before it (in the order of the trace,
or with --feedback trace of those that had ended when it started); an attempt below the peak loses
the whole runtime. Overhead is (used + wasted) / used, in memory x time; lost is the share of the
runtime spent in failed attempts.

    python benchmarks/sizing.py [DIR_OR_CSV ...] [--feedback seq|trace] [--input all|files|none]

A trace is a CSV with the columns workflow, run, category, input_mib, input_kind, declared_mib,
peak_mib, runtime_s, start_s, end_s; only run 1 is replayed. Without one, a made-up workflow is.
"""

from __future__ import annotations

import csv
import math
import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from _figures import Figure, parser, report

from controller.core.sizing import GIB, MIB, Ask, Sizing

SECOND_NS = 1_000_000_000
NODE_BYTES = 128 * GIB  # doubled until the largest task of a workflow fits
IN_FLIGHT = 16  # of a trace without times
Targets = tuple[float | None, float | None, float | None]  # overhead, % lost, % failing
TARGETS: dict[tuple[str, str], Targets] = {
    ("seq", "all"): (1.45, 12.0, 3.0),
    ("trace", "files"): (1.7, 18.0, None),
}


@dataclass(frozen=True, slots=True)
class Run:
    """One task of a trace."""

    ask: Ask
    peak_bytes: int
    runtime_ns: int
    start_s: float | None
    end_s: float | None


@dataclass(slots=True)
class Sums:
    """What a replay adds up: bytes x ns, ns, and counts."""

    used: float = 0.0
    wasted: float = 0.0
    lost_ns: int = 0
    runtime_ns: int = 0
    tasks: int = 0
    tasks_failing: int = 0

    @property
    def overhead(self) -> float:
        return (self.used + self.wasted) / self.used

    @property
    def lost_percent(self) -> float:
        return 100 * self.lost_ns / self.runtime_ns


def main() -> int:
    """Replay and tell."""
    arguments = parser("Replay task traces against learned sizing.")
    arguments.add_argument("traces", nargs="*", type=Path, help="CSV files, or folders of them")
    arguments.add_argument("--feedback", choices=("seq", "trace"), default="seq")
    arguments.add_argument("--input", choices=("all", "files", "none"), default="all")
    chosen = arguments.parse_args()
    workflows = {path.stem: load(path, chosen.input) for path in files(chosen.traces)}
    if not chosen.traces:
        workflows = {"made up": made_up()}
    results = {name: replay(runs, chosen.feedback) for name, runs in workflows.items() if runs}
    if not results:
        print("sizing: no run 1 in any of these traces", file=sys.stderr)
        return 2
    targets: Targets = (None, None, None)
    if chosen.traces:  # they are about real ones
        targets = TARGETS.get((chosen.feedback, chosen.input), targets)
    return report(
        "sizing", figures(results, targets), chosen.json,
        feedback=chosen.feedback, input=chosen.input, workflows=sorted(results),
    )  # fmt: skip


def made_up() -> list[Run]:
    """Return a small workflow by a seed: categories that differ, half of them by their input."""
    chance, runs = random.Random(1), []
    for number in range(10):
        centre = chance.lognormvariate(5.0, 1.5)
        for _ in range(3 * number):
            input_mib = chance.lognormvariate(6.0, 0.7)
            peak_mib = centre * chance.lognormvariate(0.0, 0.1)
            peak_mib *= input_mib / 400 if number % 2 else 1.0
            ask = Ask(f"step {number}", round(input_mib * MIB), 8 * GIB)
            runs.append(Run(ask, round(peak_mib * MIB), round(peak_mib * SECOND_NS), None, None))
    return runs


def files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the CSV files among the paths and in the folders among them."""
    for path in paths:
        yield from sorted(path.glob("*.csv")) if path.is_dir() else (path,)


def load(path: Path, known_input: str) -> list[Run]:
    """Return run 1 of a trace, with the inputs that are known before a task starts."""
    with path.open(encoding="utf-8", newline="") as file:
        return [_run(row, known_input) for row in csv.DictReader(file) if row["run"] == "1"]


def _run(row: dict[str, str], known_input: str) -> Run:
    told = known_input == "all" or (known_input == "files" and row["input_kind"] == "files")
    return Run(
        Ask(
            row["category"],
            _bytes(row["input_mib"]) if told else None,
            _bytes(row["declared_mib"]),
        ),
        _bytes(row["peak_mib"]) or 1,
        round(float(row["runtime_s"]) * SECOND_NS),
        float(row["start_s"]) if row["start_s"] else None,
        float(row["end_s"]) if row["end_s"] else None,
    )


def _bytes(mib: str) -> int | None:
    return round(float(mib) * MIB) if mib else None


def happenings(runs: list[Run], feedback: str) -> Iterator[tuple[str, Run]]:
    """Yield ("start", run) and ("end", run) in the order in which a scheduler lives them."""
    if feedback == "seq":
        for run in runs:
            yield "start", run
            yield "end", run
        return
    timed: list[tuple[float, int, int]] = []
    for index, run in enumerate(runs):
        if run.start_s is None or run.end_s is None:
            timed = []
            break
        ends_s = max(run.end_s, run.start_s)
        # At equal times ends come first, but none before its own start.
        timed += [(run.start_s, 1, index), (ends_s, 2 if ends_s == run.start_s else 0, index)]
    if not timed:
        for index, run in enumerate(runs):
            if index >= IN_FLIGHT:
                yield "end", runs[index - IN_FLIGHT]
            yield "start", run
        return
    for _, kind, index in sorted(timed):
        yield ("start" if kind == 1 else "end"), runs[index]


def replay(runs: list[Run], feedback: str) -> Sums:
    """Return what sizing cost over one workflow."""
    sizing, sums, node_bytes = Sizing(), Sums(), NODE_BYTES
    while node_bytes < max(run.peak_bytes for run in runs):
        node_bytes *= 2
    for kind, run in happenings(runs, feedback):
        if kind == "end":
            sizing.observe(run.ask, run.peak_bytes, run.runtime_ns)
            continue
        size, failures = sizing.size(run.ask, node_bytes).memory_bytes, 0
        while size < run.peak_bytes:
            failures += 1
            sums.wasted += size * run.runtime_ns
            sizing.observe_out_of_memory(run.ask, size)
            next_size = sizing.size_after_out_of_memory(run.ask, size, failures, node_bytes)
            size = next_size.memory_bytes
        sums.wasted += (size - run.peak_bytes) * run.runtime_ns
        sums.used += run.peak_bytes * run.runtime_ns
        sums.runtime_ns += run.runtime_ns
        sums.lost_ns += failures * run.runtime_ns
        sums.tasks += 1
        sums.tasks_failing += failures > 0
    return sums


def figures(results: dict[str, Sums], targets: Targets) -> list[Figure]:
    """Return the figures of all workflows, then of each."""
    sums = list(results.values())
    overhead = math.exp(sum(math.log(one.overhead) for one in sums) / len(sums))
    lost = sum(one.lost_percent for one in sums) / len(sums)
    failing = 100 * sum(one.tasks_failing for one in sums) / sum(one.tasks for one in sums)
    made = [
        Figure("overhead, geometric mean", overhead, "x", targets[0]),
        Figure("runtime lost, mean", lost, "%", targets[1]),
        Figure("tasks failing", failing, "%", targets[2]),
    ]
    for name, one in results.items():
        made.append(Figure(f"{name}: overhead", one.overhead, "x"))
        made.append(Figure(f"{name}: runtime lost", one.lost_percent, "%"))
        made.append(Figure(f"{name}: tasks failing", 100 * one.tasks_failing / one.tasks, "%"))
    return made


if __name__ == "__main__":
    sys.exit(main())

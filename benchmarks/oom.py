"""Runs the same memory-hungry tasks on one small node with MASS, and with GNU parallel --memfree.

A node is a group of 4 GiB with 8 slots; 60 tasks with seeded memory profiles come in one call. The
modes differ in what is declared: three times too much (over), too little for a fifth or a half of
the tasks (under, under50), nothing (none), the truth (exact). Told for each mode: medians over the
seeds of the raw time until the last task has ended, attempts killed by the kernel and by the tool,
memory wasted in attempts that did not end well. One node at a time; a run takes about a minute.

    python benchmarks/oom.py [--tool mass|memfree|both] [--modes M,M] [--seeds N,N] [--json FILE]
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from _figures import Figure, median_of, parser, report
from _memory_workloads import FAMILIES, MODES, Work, make
from _real_node import GIB, MemoryNode, probe
from mass.v1 import types_pb2
from support.cluster import MIB, Cluster

MEMORY_BYTES = 4 * GIB
SLOTS = 8
SECONDS_MAX = 200.0
# Most seconds, own kills and wasted GiB*s by mode.
TARGETS = {
    "over": (65, 4, 3), "under": (54, 6, 3), "under50": (54, 9, 4), "none": (56, 12, 6),
}  # fmt: skip
# The agent steps into the node before it begins.
AGENT = (
    "-c",
    "import os, runpy, sys\n"
    "group = sys.argv.pop(1)\n"
    "with open(f'{group}/cgroup.procs', 'w') as file: file.write(str(os.getpid()))\n"
    "runpy.run_module('agent.main', run_name='__main__', alter_sys=True)\n",
)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the observer saw in one run."""

    seconds: float
    done: int
    kernel_kills: int
    own_kills: int
    wasted_gib_s: float
    used_percent: float


@dataclass(frozen=True, slots=True)
class Flags:
    """More flags for the processes that are measured."""

    controller: Sequence[str] = ()
    agent: Sequence[str] = ()


# Runs all tasks on a node and returns when they were handed over, by the monotonic clock.
Tool = Callable[[MemoryNode, Sequence[Work], Path, Flags], float]


def main() -> int:
    """Measure and tell."""
    arguments = parser("Run memory-hungry tasks on a small node.")
    arguments.add_argument("--tool", choices=("mass", "memfree", "both"), default="both")
    arguments.add_argument("--modes", default=",".join(MODES), help="separated by commas")
    arguments.add_argument("--seeds", default="11,12,13", help="separated by commas")
    arguments.add_argument("--family", choices=sorted(FAMILIES), default="yardstick")
    arguments.add_argument("--tasks", type=int, default=60, help="how many tasks")
    arguments.add_argument("--agent", default="", help="more flags of the agent, as one word")
    arguments.add_argument("--controller", default="", help="the same for the controller")
    chosen = arguments.parse_args()
    if missing := probe():
        print(f"not measured: {missing}")
        return 0
    tools: dict[str, Tool] = {"mass": run_mass, "memfree": run_memfree}
    if chosen.tool != "both":
        tools = {chosen.tool: tools[chosen.tool]}
    if "memfree" in tools and shutil.which("parallel") is None:
        print("GNU parallel is not installed (Debian: apt-get install parallel): left out")
        del tools["memfree"]
    flags = Flags(shlex.split(chosen.controller), shlex.split(chosen.agent))
    modes, seeds = chosen.modes.split(","), [int(seed) for seed in chosen.seeds.split(",")]
    figures: list[Figure] = []
    for name, tool in tools.items():
        # To --memfree nothing is declared, so one mode stands for all.
        for mode in modes if name == "mass" else ["none"]:
            works = [make(chosen.family, mode, seed, chosen.tasks) for seed in seeds]
            seen = [measure(name, tool, tasks, flags) for tasks in works]
            figures += figures_of(name, mode, seen, chosen.tasks)
    return (
        report("oom", figures, chosen.json, modes=modes, seeds=seeds, family=chosen.family)
        if figures
        else 0
    )


def measure(name: str, tool: Tool, tasks: Sequence[Work], flags: Flags) -> Seen:
    """Return what one run of a tool showed."""
    with (
        tempfile.TemporaryDirectory(prefix="mass-oom-") as directory,
        MemoryNode(str(os.getpid()), MEMORY_BYTES, Path(directory)) as node,
    ):
        began = tool(node, tasks, Path(directory), flags)
        node.settle()
        seen = _seen(node, began)
    print(f"{name}: {seen}", flush=True)
    return seen


def _name(task: Work) -> str:
    return f"{task.category}-{task.task_id}"


def run_mass(node: MemoryNode, tasks: Sequence[Work], directory: Path, flags: Flags) -> float:
    """Run the tasks with a controller outside of the node and an agent inside."""
    entry = (*AGENT, str(node.group))
    with Cluster(directory, *flags.controller) as cluster:
        cluster.start_controller()
        cluster.start_agent("bench", "--cpus", str(SLOTS), *flags.agent, entry=entry)
        cluster.wait_ready()
        specs = [
            types_pb2.TaskSpec(
                command=node.command(_name(task), task.ramps),
                name=_name(task),
                category=task.category,
                memory_request_bytes=int(task.declared_mib or 0) * MIB,
            )
            for task in tasks
        ]
        began = time.monotonic()
        cluster.wait_ended(cluster.client.submit(specs, "bench"), SECONDS_MAX)
    return began


def run_memfree(node: MemoryNode, tasks: Sequence[Work], directory: Path, _: Flags) -> float:
    """Run the tasks with GNU parallel, which sees the node's memory as the machine's."""
    lines = [shlex.join(node.command(_name(task), task.ramps)) for task in tasks]
    jobs = directory / "jobs"
    jobs.write_text("\n".join(lines) + "\n")
    parallel = ["parallel", "-j", str(SLOTS), "--memfree", "1G", "--retries", "20"]
    command = node.inside(["sh", "-c", f"{shlex.join(parallel)} < {jobs}"], view=True)
    began = time.monotonic()
    subprocess.run(command, check=False, timeout=SECONDS_MAX, stdout=subprocess.DEVNULL)
    return began


def figures_of(name: str, mode: str, seen: Sequence[Seen], tasks: int) -> list[Figure]:
    """Return the medians over the runs of one mode; what must never happen as the worst of all."""
    none = (None, None, None)
    seconds_max, kills_max, wasted_max = TARGETS.get(mode, none) if name == "mass" else none
    label = f"{name} {mode}"
    return [
        Figure(f"{label} makespan", median_of(s.seconds for s in seen), "s", seconds_max),
        Figure(f"{label} done, least", min(s.done for s in seen), "tasks", tasks, at_least=True),
        Figure(f"{label} kernel kills, most", max(s.kernel_kills for s in seen), "kills", 0),
        Figure(f"{label} own kills", median_of(s.own_kills for s in seen), "kills", kills_max),
        Figure(f"{label} wasted", median_of(s.wasted_gib_s for s in seen), "GiB*s", wasted_max),
        Figure(f"{label} memory used", median_of(s.used_percent for s in seen), "%"),
    ]


def _seen(node: MemoryNode, began: float) -> Seen:
    ended = max((run.ended or run.seen for run in node.runs), default=began)
    failed = [run for run in node.runs if not run.succeeded]
    used = [used_bytes for at, used_bytes in node.used if began <= at <= ended]
    return Seen(
        seconds=round(ended - began, 2),
        done=len({run.name for run in node.runs if run.succeeded}),
        kernel_kills=sum(run.kernel_killed for run in failed),
        own_kills=sum(not run.kernel_killed for run in failed),
        wasted_gib_s=round(sum(run.byte_seconds for run in failed) / GIB, 2),
        used_percent=round(100 * sum(used) / max(1, len(used)) / node.memory_bytes, 1),
    )


if __name__ == "__main__":
    sys.exit(main())

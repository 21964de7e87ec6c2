"""Measures placements per second on a nearly full fleet, from queue to commands.

The core alone: whole cycles of the scheduler with waiting tasks of mixed sizes and cpus, some with
a constraint on labels, and more tasks than fit, so that refusals are found as well. A placement
counts once it is reserved in the ledger and has its commands to save and to send; afterwards the
reasons of all that wait are worked out. Times are of this thread's CPU.

    python benchmarks/placement.py [--nodes N] [--tasks N] [--cycles N] [--json FILE]
"""

from __future__ import annotations

import gc
import random
import sys
import time

from _figures import Figure, median_of, parser, report

from allocator.pool import Pool
from controller.core.cluster import Cluster
from controller.core.commands import SendAssignment
from controller.core.events import AttemptEnded, NodeJoined, TasksSubmitted
from controller.core.explain import pending_reason
from controller.core.history import INDEX
from controller.core.limits import GIB, MIB, SECOND_NS, Limits
from controller.core.model import OomCause, TaskSpec
from controller.core.rules import RuleSet
from controller.core.scheduler import Scheduler
from controller.pool_size import pool_bytes

START_NS = 1_800_000_000 * SECOND_NS
TOTAL_BYTES = 256 * GIB
CPUS = 64.0
FULL = 0.90
SIZES_MIB = (64, 128, 200, 256, 384, 512, 768, 1_024)
TASK_CPUS = (0.1, 0.25, 0.5)
CONSTRAINTS = ("", "", "", "zone = a", "disk = ssd and zone != b")
TOO_LARGE_BYTES = 40 * GIB  # more than any node has left
TOO_LARGE = 20


def main() -> int:
    """Measure and tell."""
    arguments = parser("Measure placements on a nearly full fleet.")
    arguments.add_argument("--nodes", type=int, default=1_000)
    arguments.add_argument("--tasks", type=int, default=5_000, help="placed in each cycle")
    arguments.add_argument("--cycles", type=int, default=5)
    chosen = arguments.parse_args()
    limits = Limits(
        nodes_max=chosen.nodes, tasks_running_max=chosen.nodes + chosen.tasks + TOO_LARGE
    )
    rules = RuleSet(())
    with Pool(pool_bytes(limits, rules)) as pool:
        fleet = Fleet(Cluster(limits, rules, pool), chosen.nodes)
        figures = measure(fleet, chosen.tasks, chosen.cycles)
        fleet.cluster.close()
    return report(
        "placement", figures, chosen.json,
        nodes=chosen.nodes, tasks=chosen.tasks, cycles=chosen.cycles,
    )  # fmt: skip


class Fleet:
    """Nodes of which nine tenths are taken by one large task each."""

    def __init__(self, cluster: Cluster, nodes: int) -> None:
        """Let all nodes join and fill up."""
        self.cluster = cluster
        self.scheduler = Scheduler(cluster)
        self.chance = random.Random(1)
        self.now_ns = START_NS
        self.sequences: dict[str, int] = {}
        for number in range(nodes):
            self.scheduler.handle(_hello(number))
        self.sample()
        capacity = int(cluster.ledger.capacity_bytes[0])
        self.submit([_spec(int(capacity * FULL), 1.0, "", "filler")] * nodes)
        self.scheduler.run_cycle(self.now_ns)
        assert len(cluster.reservations) == nodes

    def sample(self) -> None:
        """Let every node sample: empty but for a little."""
        self.now_ns += SECOND_NS
        for record in self.cluster.nodes.values():
            row = self.cluster.history.begin()
            row[INDEX["mem_total"]] = TOTAL_BYTES
            row[INDEX["mem_available"]] = TOTAL_BYTES - GIB
            self.cluster.history.write(record.slot, self.now_ns)
            self.cluster.touch(record, self.now_ns, sampled=True)

    def submit(self, specs: list[TaskSpec]) -> None:
        """Submit tasks in one call."""
        self.scheduler.handle(TasksSubmitted(self.now_ns, "", "ada", tuple(specs)))

    def mixed(self, count: int) -> list[TaskSpec]:
        """Return tasks of many shapes."""
        pick = self.chance.choice
        return [
            _spec(pick(SIZES_MIB) * MIB, pick(TASK_CPUS), pick(CONSTRAINTS), "mixed")
            for _ in range(count)
        ]

    def end_mixed(self) -> None:
        """End every placed task but the fillers."""
        placed = [self.cluster.tasks[task_id] for task_id in self.cluster.reservations]
        for task in placed:
            if task.spec.name != "filler":
                sequence = self.sequences.get(task.node_id, 0) + 1
                self.sequences[task.node_id] = sequence
                self.scheduler.handle(
                    _ended(task.node_id, sequence, task.id, task.attempt, self.now_ns)
                )


def measure(fleet: Fleet, tasks: int, cycles: int) -> list[Figure]:
    """Return the figures of that many cycles."""
    gc.collect()
    gc.freeze()
    rates, reasons_us = [], []
    # No node can take these now: they wait through all cycles, before all others.
    fleet.submit([_spec(TOO_LARGE_BYTES + n * MIB, 1.0, "", "large") for n in range(TOO_LARGE)])
    refused = 0
    for number in range(cycles + 1):
        fleet.sample()
        fleet.submit(fleet.mixed(tasks))
        cpu = time.thread_time()
        commands = fleet.scheduler.run_cycle(fleet.now_ns)
        spent = time.thread_time() - cpu
        placed = sum(isinstance(command, SendAssignment) for command in commands)
        assert placed == tasks, f"{placed} of {tasks} placed"
        waiting = [task for task in fleet.cluster.tasks.values() if task.state.value == "PENDING"]
        refused = len(waiting)
        cpu = time.thread_time()
        for task in waiting:
            assert pending_reason(fleet.cluster, fleet.scheduler.displayed, task)[0]
        if number:
            rates.append(placed / spent)
            reasons_us.append((time.thread_time() - cpu) * 1e6 / max(1, refused))
        fleet.end_mixed()
    return [
        Figure("placements, median", median_of(rates), "/s of CPU", 20_000.0, at_least=True),
        Figure("placements, slowest cycle", min(rates), "/s of CPU"),
        Figure("one placement", 1e6 / median_of(rates), "us CPU"),
        Figure("a reason asked for", median_of(reasons_us), "us CPU"),
        Figure("left waiting", float(refused), "tasks"),
    ]


def _spec(memory_bytes: int, cpus: float, constraint: str, name: str) -> TaskSpec:
    return TaskSpec(
        command=("true",),
        name=name,
        category=name,
        memory_request_bytes=memory_bytes,
        memory_limit_bytes=None,
        memory_exact=name in ("filler", "large"),  # all that they declare is set aside
        cpus=cpus,
        constraint=constraint,
    )


def _hello(number: int) -> NodeJoined:
    return NodeJoined(
        at_ns=START_NS,
        node_id=f"node-{number}",
        instance_id=f"instance-{number}",
        machine_id=f"machine-{number}",
        boot_id="boot",
        agent_version="bench",
        memory_total_bytes=TOTAL_BYTES,
        memory_declared_bytes=None,
        cpus=CPUS,
        enforcement="cgroup1",
        attempts=(),
        stream=number + 1,
        labels={"zone": "abc"[number % 3], "disk": ("ssd", "hdd")[number % 2]},
    )


def _ended(node_id: str, sequence: int, task_id: int, attempt: int, at_ns: int) -> AttemptEnded:
    return AttemptEnded(
        at_ns=at_ns,
        node_id=node_id,
        sequence=sequence,
        task_id=task_id,
        attempt=attempt,
        exit_code=0,
        signal=None,
        memory_peak_bytes=MIB,
        oom_kill_count=0,
        oom_cause=OomCause.NONE,
        started_at_ns=at_ns,
        ended_at_ns=at_ns,
        timed_out=False,
        stopped=False,
        start_error="",
    )


if __name__ == "__main__":
    sys.exit(main())

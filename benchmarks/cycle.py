"""Measures one cycle of the scheduler over a large fleet with full histories.

The core alone, no shells: nodes x rules, half of the rules with a window of 5 minutes, every
history full, a tenth of the nodes with a new sample before each cycle, some of them across a
threshold so that alerts move. Times are of this thread's CPU, so other work hardly matters.

    python benchmarks/cycle.py [--nodes N] [--rules N] [--changed N] [--cycles N] [--json FILE]
"""

from __future__ import annotations

import gc
import random
import sys
import time

from _figures import Figure, median_of, parser, percentiles, report

from allocator.pool import Pool
from controller.core.cluster import Cluster
from controller.core.commands import Notify, SaveAlert
from controller.core.events import NodeJoined
from controller.core.expressions import parse
from controller.core.history import INDEX
from controller.core.limits import GIB, SECOND_NS, Limits
from controller.core.metrics import METRIC_NAMES, WINDOWLESS_NAMES
from controller.core.rules import Rule, RuleSet
from controller.core.scheduler import Scheduler
from controller.pool_size import pool_bytes

START_NS = 1_800_000_000 * SECOND_NS
TOTAL_BYTES = 64 * GIB
GAP_NS = 200_000_000
# Full: 60 one-minute rows, of them the last 36 ten-second rows and 64 samples as well.
HISTORY_AGES_S = (*range(3_660, 420, -30), *range(420, 64, -10), *range(64, 0, -1))
METRICS = ("mem_percent", "cpu_percent", "load1", "swap_percent", "disk_percent")
FUNCTIONS = ("avg", "max", "min", "delta", "rate")


def main() -> int:
    """Measure and tell."""
    arguments = parser("Measure a cycle over many nodes and rules.")
    arguments.add_argument("--nodes", type=int, default=10_000)
    arguments.add_argument("--rules", type=int, default=20)
    arguments.add_argument("--changed", type=int, default=1_000, help="nodes with a new sample")
    arguments.add_argument("--cycles", type=int, default=100)
    chosen = arguments.parse_args()
    limits = Limits(nodes_max=chosen.nodes)
    rules = RuleSet(make_rules(chosen.rules))
    with Pool(pool_bytes(limits, rules)) as pool:
        fleet = Fleet(Cluster(limits, rules, pool), chosen.nodes)
        figures = measure(fleet, chosen.changed, chosen.cycles)
        fleet.cluster.close()
    return report(
        "cycle", figures, chosen.json, nodes=chosen.nodes, rules=chosen.rules,
        changed=chosen.changed, cycles=chosen.cycles,
    )  # fmt: skip


def make_rules(count: int) -> tuple[Rule, ...]:
    """Return that many rules, every second one with a window of 5 minutes."""
    made = []
    for index in range(count):
        metric = METRICS[index // 2 % len(METRICS)]
        threshold = 90 + index / count
        text = f"{metric} > {threshold:g}"
        if index % 2:
            function = FUNCTIONS[index // 2 % len(FUNCTIONS)]
            text = f"{function}({metric}, '5m') > {threshold:g}"
        made.append(
            Rule(
                name=f"rule{index}",
                group="bench",
                expression=parse(text, METRIC_NAMES, WINDOWLESS_NAMES),
                hold_ns=(index % 3) * SECOND_NS,
                annotations={"summary": "{{ $labels.node }} at {{ $value }}"},
                blocks_placement=index % 5 == 0,
            )
        )
    return tuple(made)


class Fleet:
    """Nodes with full histories, and samples by a seeded generator."""

    def __init__(self, cluster: Cluster, nodes: int) -> None:
        """Let all nodes join, and fill their histories."""
        self.cluster = cluster
        self.scheduler = Scheduler(cluster)
        self.chance = random.Random(1)
        self.now_ns = START_NS
        for number in range(nodes):
            self.scheduler.handle(_hello(number, START_NS - 3_700 * SECOND_NS))
        self.records = list(cluster.nodes.values())
        for age_s in HISTORY_AGES_S:
            for record in self.records:
                self.sample(record.slot, START_NS - age_s * SECOND_NS)
        for record in self.records:
            cluster.touch(record, START_NS, sampled=True)

    def sample(self, slot: int, at_ns: int) -> None:
        """Write one sample: each node about its own level, one in fifty beyond all thresholds."""
        row, chance = self.cluster.history.begin(), self.chance.random
        used = 0.97 if chance() < 0.02 else 0.1 + slot % 70 / 100 + 0.05 * chance()
        row[INDEX["mem_total"]] = TOTAL_BYTES
        row[INDEX["mem_available"]] = TOTAL_BYTES * (1 - used)
        row[INDEX["mem_percent"]] = 100 * used
        row[INDEX["cpu_percent"]] = 20 + slot % 60 + 10 * chance()
        for name in METRICS[2:]:
            row[INDEX[name]] = 40.0 + slot % 7
        self.cluster.history.write(slot, at_ns)

    def change(self, count: int) -> None:
        """Move time on and let some nodes sample."""
        self.now_ns += GAP_NS
        for record in self.chance.sample(self.records, count):
            self.sample(record.slot, self.now_ns)
            self.cluster.touch(record, self.now_ns, sampled=True)


def measure(fleet: Fleet, changed: int, cycles: int) -> list[Figure]:
    """Return the figures of that many cycles, after some to warm up."""
    gc.collect()
    gc.freeze()
    cpu_ms, wall_ms = [], []
    moved = notices = 0
    for number in range(cycles + 5):
        fleet.change(changed)
        began, cpu = time.perf_counter(), time.thread_time()
        commands = fleet.scheduler.run_cycle(fleet.now_ns)
        if number >= 5:
            cpu_ms.append((time.thread_time() - cpu) * 1e3)
            wall_ms.append((time.perf_counter() - began) * 1e3)
            moved += sum(isinstance(command, SaveAlert) for command in commands)
            notices += sum(isinstance(command, Notify) for command in commands)
    return [
        Figure("cycle, median", median_of(cpu_ms), "ms CPU", target=10.0),
        Figure("cycle, p90", percentiles(cpu_ms)["p90"], "ms CPU"),
        Figure("cycle, max", max(cpu_ms), "ms CPU"),
        Figure("cycle, median", median_of(wall_ms), "ms wall"),
        Figure("alerts moved", moved / cycles, "per cycle"),
        Figure("notices", notices / cycles, "per cycle"),
        Figure("pool used", fleet.cluster.pool.statistics().used_bytes / (1 << 20), "MiB"),
    ]


def _hello(number: int, at_ns: int) -> NodeJoined:
    return NodeJoined(
        at_ns=at_ns,
        node_id=f"node-{number}",
        instance_id=f"instance-{number}",
        machine_id=f"machine-{number}",
        boot_id="boot",
        agent_version="bench",
        memory_total_bytes=TOTAL_BYTES,
        memory_declared_bytes=None,
        cpus=16.0,
        enforcement="cgroup1",
        attempts=(),
        stream=number + 1,
    )


if __name__ == "__main__":
    sys.exit(main())

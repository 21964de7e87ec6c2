"""The metrics that rules may name: one table for each scope, and nothing else knows their names.

The order of the nodes' metrics is the order of the columns; a new one goes to the end of its table.
Metrics that a rule file declares come behind the built-in ones of a node.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

CUSTOM_METRICS_MAX = 32  # declared by all rule files together, and reported by one node
CUSTOM_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,62}")
CUSTOM_NAME_RULE = "1 to 63 letters, digits and '_', no digit first"


class Scope(Enum):
    """What a rule looks at, and what its alerts are about; the values are the words of rules."""

    NODE = "node"  # each node on its own
    CLUSTER = "cluster"  # all nodes together
    TASK = "task"  # each running task on its own


class Unit(Enum):
    """What a metric's number counts; the values are the words people read."""

    BYTES = "bytes"
    BYTES_PER_SECOND = "bytes per second"
    PERCENT = "percent"
    SECONDS = "seconds"
    COUNT = "count"


@dataclass(frozen=True, slots=True)
class Metric:
    """One number that each node (or task, or the cluster) has at any time, or lacks (NaN)."""

    name: str
    unit: Unit
    meaning: str
    windowed: bool = True  # whether it is sampled, so that a window over it means something


METRICS = (
    Metric("mem_percent", Unit.PERCENT, "used memory as a share of the node's limit, 0 to 100"),
    Metric("mem_used", Unit.BYTES, "memory in use: limit minus available, page cache not counted"),
    Metric("mem_available", Unit.BYTES, "memory that could still be given, page cache included"),
    Metric("mem_total", Unit.BYTES, "the smallest memory limit of the host and its groups"),
    Metric("mem_reserved", Unit.BYTES, "memory set aside in the ledger for tasks on the node"),
    Metric("mem_foreign", Unit.BYTES, "memory used on the machine by what is not a task"),
    Metric("mem_growth", Unit.BYTES_PER_SECOND, "slope of the used memory over the last seconds"),
    Metric("swap_percent", Unit.PERCENT, "used swap space as a share of all, 0 to 100"),
    Metric("swap_used", Unit.BYTES, "swap space in use"),
    Metric("psi_some", Unit.PERCENT, "share of the last 10 s in which a task waited for memory"),
    Metric("psi_full", Unit.PERCENT, "share of the last 10 s in which all tasks waited for memory"),
    Metric("cpu_percent", Unit.PERCENT, "use of all cores together, 0 to 100"),
    Metric("load1", Unit.COUNT, "mean number of runnable processes over 1 minute"),
    Metric("load5", Unit.COUNT, "mean number of runnable processes over 5 minutes"),
    Metric("load15", Unit.COUNT, "mean number of runnable processes over 15 minutes"),
    Metric("disk_percent", Unit.PERCENT, "used share of the work directory's file system"),
    Metric("tasks_running", Unit.COUNT, "attempts that run on the node"),
    Metric("task_mem_max", Unit.BYTES, "memory used by the node's largest task"),
    Metric(
        "oom_kills",
        Unit.COUNT,
        "kernel kills of tasks, but for limits of their own, since the agent started",
    ),
    # It grows only while no sample arrives, so a history of it would hold nothing but zeros.
    Metric("node_silent_seconds", Unit.SECONDS, "time since the node's last message", False),
)

METRIC_NAMES = tuple(metric.name for metric in METRICS)
WINDOWLESS_NAMES = frozenset(metric.name for metric in METRICS if not metric.windowed)

# Those of the whole cluster and of each running task; of neither a history is kept.
CLUSTER_METRICS = (
    Metric("nodes_ready", Unit.COUNT, "nodes that are connected and sampled", False),
    Metric("nodes_down", Unit.COUNT, "nodes that are not heard of: UNREACHABLE or DOWN", False),
    Metric("tasks_pending", Unit.COUNT, "tasks that wait for a node", False),
    Metric("tasks_running_total", Unit.COUNT, "tasks that have a node, starting ones too", False),
    Metric("pool_used_percent", Unit.PERCENT, "used share of the controller's own pool", False),
)
TASK_METRICS = (
    Metric("task_mem_used", Unit.BYTES, "memory of the task's process tree", False),
    Metric("task_mem_reserved", Unit.BYTES, "memory set aside for the task", False),
    Metric("task_mem_limit", Unit.BYTES, "what the kernel enforces on the task", False),
    Metric("task_mem_percent", Unit.PERCENT, "task_mem_used as a share of task_mem_limit", False),
    Metric("task_runtime_seconds", Unit.SECONDS, "time since the attempt has started", False),
)
CLUSTER_NAMES = frozenset(metric.name for metric in CLUSTER_METRICS)
SCOPE_METRICS = {Scope.NODE: METRICS, Scope.CLUSTER: CLUSTER_METRICS, Scope.TASK: TASK_METRICS}
BUILT_IN_NAMES = frozenset(metric.name for table in SCOPE_METRICS.values() for metric in table)

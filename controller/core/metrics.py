"""The built-in metrics that rules may name: one table, and nothing else knows their names.

Their order is the order of the columns; a new one goes to the end of the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Unit(Enum):
    """What a metric's number counts; the values are the words people read."""

    BYTES = "bytes"
    BYTES_PER_SECOND = "bytes per second"
    PERCENT = "percent"
    SECONDS = "seconds"
    COUNT = "count"


@dataclass(frozen=True, slots=True)
class Metric:
    """One number that each node has at any time, or lacks (NaN)."""

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
    Metric("oom_kills", Unit.COUNT, "kernel kills in tasks' groups since the agent started"),
    # It grows only while no sample arrives, so a history of it would hold nothing but zeros.
    Metric("node_silent_seconds", Unit.SECONDS, "time since the node's last message", False),
)

METRIC_NAMES = tuple(metric.name for metric in METRICS)
WINDOWLESS_NAMES = frozenset(metric.name for metric in METRICS if not metric.windowed)

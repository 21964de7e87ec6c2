"""What one cycle saw and decided: the frozen view it read, and what followed from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from controller.core.cluster import Cluster
from controller.core.expressions import Window
from controller.core.metrics import CLUSTER_NAMES, Scope
from controller.core.model import NodeState
from controller.core.nodes import Bools, Floats, Ints
from controller.core.placement import Offers
from controller.core.promise import MemoryView, Promises
from controller.core.rules import RuleResult

GROWTH_MAX = float(1 << 50)  # bytes per second; an agent may say anything

# Known to the controller itself: every placement changes them, not only samples.
LIVE_METRICS = frozenset({"mem_reserved", "tasks_running"})


@dataclass(frozen=True, slots=True)
class Metrics:
    """All nodes at one instant, by slot. Columns are views of the pool: they live for one cycle.

    Beside them are those of the running tasks by row, and for rules over the whole cluster its own
    metrics (one row each) and again those of all nodes.
    """

    now_ns: int
    count: int
    memory: MemoryView
    column: Callable[[str | Window], Floats]
    cluster_column: Callable[[str | Window], Floats]
    task_column: Callable[[str | Window], Floats]


@dataclass(slots=True)
class Results:
    """Per node: the two sums of what it can promise, its pressure, the rules that hold.

    `offers` is the working copy that assigning tasks takes from.
    """

    now_ns: int
    count: int
    promises: Promises
    rules: tuple[RuleResult, ...]
    offers: Offers


def read_metrics(cluster: Cluster, now_ns: int) -> Metrics:
    """Return the frozen view of all nodes at now_ns."""
    table, history, ledger = cluster.table, cluster.history, cluster.ledger
    count = table.count
    sampled_at_ns = history.sampled_at_ns()
    total, available, growth = history.latest_of(
        ("mem_total", "mem_available", "mem_growth"), now_ns
    )
    measured = ~(np.isnan(total) | np.isnan(available))
    whole = np.where(measured, total, table.total_bytes[:count]).astype(np.int64)
    growth = np.where(np.isnan(growth), 0.0, growth)
    memory = MemoryView(
        used_slot=table.used[:count].copy(),
        measured=measured,
        sampled_at_ns=sampled_at_ns,
        machine=table.machine[:count].copy(),
        total=whole,
        available=np.where(measured, available, whole).astype(np.int64),
        # Copies: this cycle's own assignments change the ledger, and what it saw is shown later.
        capacity=ledger.capacity_bytes[:count].copy(),
        reserved=ledger.reserved_bytes[:count].copy(),
        charged=ledger.charged_bytes[:count].copy(),
        tasks_used=ledger.used_bytes[:count].copy(),
        freed=table.freed_bytes[:count].copy(),
        growth_per_second=np.minimum(np.maximum(growth, -GROWTH_MAX), GROWTH_MAX).astype(np.int64),
        machines_shared=table.machines_shared,
    )
    column = _columns(cluster, memory, now_ns)
    return Metrics(
        now_ns,
        count,
        memory,
        column=column,
        cluster_column=_cluster_columns(cluster, column, now_ns),
        task_column=_task_columns(cluster, now_ns),
    )


def _cluster_columns(
    cluster: Cluster, column: Callable[[str | Window], Floats], now_ns: int
) -> Callable[[str | Window], Floats]:
    """Return the function by which rules over the cluster get their columns.

    After a restart nodes come back one by one; until they have, nothing is known of all of them.
    """
    settled = cluster.is_settled(now_ns)

    def of_cluster(name: str | Window) -> Floats:
        if not settled:
            return np.array([np.nan])
        if name in CLUSTER_NAMES:
            return np.array([_of_cluster(cluster, str(name))], np.float64)
        return column(name)

    return of_cluster


def _of_cluster(cluster: Cluster, name: str) -> float:
    """Return one of the cluster's own metrics."""
    match name:
        case "nodes_ready":
            return _nodes_in(cluster, NodeState.READY)
        case "nodes_down":
            return _nodes_in(cluster, NodeState.UNREACHABLE, NodeState.DOWN)
        case "tasks_pending":
            return len(cluster.queue)
        case "tasks_running_total":
            return len(cluster.reservations)
    assert name == "pool_used_percent", name
    statistics = cluster.pool.statistics()
    return 100.0 * statistics.used_bytes / statistics.capacity_bytes


def _nodes_in(cluster: Cluster, *states: NodeState) -> int:
    return sum(1 for record in cluster.nodes.values() if record.state in states)


def _task_columns(cluster: Cluster, now_ns: int) -> Callable[[str | Window], Floats]:
    """Return the function by which rules over tasks get their columns, all made at once."""
    cluster.update_task_rows()
    if Scope.TASK not in cluster.rules.scopes:
        return lambda name: np.empty(0)
    columns = cluster.task_rows.columns(cluster.ledger.records(), cluster.tasks, now_ns)
    return lambda name: columns[str(name)]


def _columns(cluster: Cluster, memory: MemoryView, now_ns: int) -> Callable[[str | Window], Floats]:
    """Return the function by which rules get their columns; each is made once a cycle."""
    made: dict[str | Window, Floats] = {}

    def column(name: str | Window) -> Floats:
        known = made.get(name)
        if known is None:
            known = made[name] = make(name)
        return known

    def make(name: str | Window) -> Floats:
        if isinstance(name, Window):
            return cluster.history.window(name, now_ns)
        count = cluster.table.count
        if name == "node_silent_seconds":
            silent = (now_ns - cluster.table.last_seen_ns[:count]) / 1e9
            return np.where(memory.used_slot, silent, np.nan)
        # Known to the controller itself, so always up to date.
        if name == "mem_reserved":
            return _where_used(memory, memory.reserved)
        if name == "tasks_running":
            table = cluster.table
            tasks = cluster.ledger.count[:count] - table.reservations[:count] - table.held[:count]
            return _where_used(memory, tasks)
        return cluster.history.latest(name, now_ns)

    return column


def _where_used(memory: MemoryView, column: Ints) -> Floats:
    return np.where(memory.used_slot, column.astype(np.float64), np.nan)


def make_offers(cluster: Cluster, promises: Promises, blocked: Bools, capacity: Ints) -> Offers:
    """Return a working copy of what the nodes offer."""
    table = cluster.table
    count = table.count
    machine_when_empty = promises.machine + promises.machine_charged
    return Offers(
        open=table.open[:count] & promises.known,
        reopens=table.reopens[:count],
        blocked=blocked,
        promise=promises.promise.copy(),
        own=promises.own.copy(),
        machine=promises.machine.copy(),
        capacity=capacity,
        when_empty=np.minimum(capacity, machine_when_empty),
        cpus=table.cpus[:count].copy(),
        cpus_free=table.cpus[:count] - table.cpus_used[:count],
        members=table.neighbours,
        machines_shared=table.machines_shared,
        gpus=table.gpus[:count].copy(),
        gpus_free=table.gpus[:count] - table.gpus_used[:count],
        matching=table.matching,
        stopped=table.intake_stopped[:count].copy(),
    )

"""What each node can still promise: the smaller of two sums, and how near it is to its end.

own share:   capacity - sum of max(reserved, used) over its tasks and reservations
the machine: total - system reserve - foreign - the same sum over all nodes of the machine

foreign is the machine's used memory less what tasks of any of its nodes use, so that two agents on
one machine do not count each other's tasks as foreign, and less what tasks used that have ended
since the last sample. What tasks are expected to grow by is part of what is reserved.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controller.core.limits import Limits
from controller.core.model import Pressure
from controller.core.nodes import Bools, Ints

PRESSURES = (Pressure.NONE, Pressure.WARN, Pressure.HIGH, Pressure.CRITICAL)


@dataclass(frozen=True, slots=True)
class MemoryView:
    """The measured and reserved memory of all nodes at one instant, by slot, in bytes.

    `total` and `available` are of the machine (or container) a node lives on; where nothing was
    measured yet, available equals total and `measured` is False.
    """

    used_slot: Bools
    measured: Bools
    sampled_at_ns: Ints
    machine: Ints
    total: Ints
    available: Ints
    capacity: Ints
    reserved: Ints
    charged: Ints  # sum of max(reserved, used) over the node's tasks
    tasks_used: Ints
    freed: Ints  # by tasks that have ended since the sample
    growth_per_second: Ints
    machines_shared: bool


@dataclass(frozen=True, slots=True)
class Promises:
    """The two sums of every node and their terms, by slot, in bytes; promises are never negative.

    Terms of the machine are the same for all nodes on it.
    """

    known: Bools  # it was measured lately, by its own agent: what its tasks use is known too
    own: Ints
    machine: Ints
    machine_total: Ints
    promise: Ints
    foreign: Ints
    machine_used: Ints
    machine_charged: Ints
    system_reserve: Ints
    pressure: Ints  # index into PRESSURES


def capacity_bytes(total_bytes: int, declared_bytes: int | None, limits: Limits) -> int:
    """Return what MASS may promise on a node: the agent's --memory, else total - system reserve."""
    if declared_bytes is not None:
        return declared_bytes
    return max(0, total_bytes - limits.system_reserve_bytes(total_bytes))


def compute(view: MemoryView, limits: Limits) -> Promises:
    """Return the promises of all nodes. Cost: a few passes over the columns."""
    used = view.total - view.available
    charged, total = view.charged, view.total
    tasks_used = view.tasks_used + view.freed  # of which the sample knew
    known = view.used_slot & view.measured
    if view.machines_shared:
        used, total = _freshest(view, used), _freshest(view, total)
        charged = _per_machine(view, charged)
        tasks_used = _per_machine(view, tasks_used)
    foreign = np.maximum(used - tasks_used, 0)
    reserve = np.maximum(
        limits.system_reserve_min_bytes, (total * limits.system_reserve_ratio).astype(np.int64)
    )
    own = view.capacity - view.charged
    machine = total - reserve - foreign - charged
    promise = np.maximum(np.minimum(own, machine), 0)
    pressure = _pressure(view, known, used, total, limits)
    return Promises(
        known=known,
        own=own,
        machine=machine,
        machine_total=total,
        # What is not measured is not promised: anything may be running there.
        promise=np.where(known, promise, 0),
        foreign=foreign,
        machine_used=used,
        machine_charged=charged,
        system_reserve=reserve,
        pressure=pressure,
    )


def _per_machine(view: MemoryView, column: Ints) -> Ints:
    """Return for each slot the sum of a column over all nodes of its machine."""
    sums = np.zeros(int(view.machine.max(initial=0)) + 1, dtype=np.int64)
    np.add.at(sums, view.machine[view.used_slot], column[view.used_slot])
    return sums[view.machine]


def _freshest(view: MemoryView, column: Ints) -> Ints:
    """Return for each slot the column's value from the newest sample of its machine."""
    measured = view.used_slot & view.measured
    order = np.argsort(np.where(measured, view.sampled_at_ns, -1), kind="stable")
    newest = np.zeros(int(view.machine.max(initial=0)) + 1, dtype=np.int64)
    newest[view.machine[order]] = column[order]  # the last write of a row stays: the newest sample
    return newest[view.machine]


def _pressure(view: MemoryView, known: Bools, used: Ints, total: Ints, limits: Limits) -> Ints:
    """Return the worse of the machine's and the node's own pressure, as an index."""
    own = view.tasks_used * 100.0 / np.maximum(view.capacity, 1)
    percent = np.maximum(used * 100.0 / np.maximum(total, 1), own)
    growth = view.growth_per_second
    left = np.minimum(total - used, view.capacity - view.tasks_used)
    growing = growth > 0
    seconds = np.where(growing, left / np.maximum(growth, 1), np.inf)
    level = np.zeros(len(percent), dtype=np.int64)
    steps = (
        (limits.pressure_warn_percent, limits.pressure_warn_ns),
        (limits.pressure_high_percent, limits.pressure_high_ns),
        (limits.pressure_critical_percent, limits.pressure_critical_ns),
    )
    for index, (bound_percent, bound_ns) in enumerate(steps, start=1):
        level[(percent >= bound_percent) | (seconds <= bound_ns / 1e9)] = index
    level[~known] = 0
    return level

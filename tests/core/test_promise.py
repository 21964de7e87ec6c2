"""What nodes can promise, against the same sums worked out node by node in plain integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core.limits import DEFAULT_LIMITS, GIB, MIB
from controller.core.promise import PRESSURES, MemoryView, capacity_bytes, compute

RESERVE_MIN = 256 * MIB


@dataclass(frozen=True, slots=True)
class Row:
    """One node."""

    machine: int
    total: int
    available: int
    capacity: int
    reserved: int
    used: int  # by its tasks
    sampled_at: int = 1
    growth: int = 0
    there: bool = True
    measured: bool = True
    freed: int = 0  # by tasks that have ended since the sample

    @property
    def charged(self) -> int:
        return max(self.reserved, self.used)


def view(rows: list[Row]) -> MemoryView:
    """Return the rows as columns, as the cycle reads them."""

    def column(name: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.array([getattr(row, name) for row in rows], dtype=np.int64)

    there = np.array([row.there for row in rows], dtype=np.bool_)
    machines = {row.machine for row in rows if row.there}
    return MemoryView(
        used_slot=there,
        measured=np.array([row.measured for row in rows], dtype=np.bool_),
        sampled_at_ns=column("sampled_at"),
        machine=column("machine"),
        total=column("total"),
        # What was not measured is taken as free, see read_metrics.
        available=np.where([r.measured for r in rows], column("available"), column("total")),
        capacity=column("capacity"),
        reserved=column("reserved"),
        charged=column("charged"),
        tasks_used=column("used"),
        freed=column("freed"),
        growth_per_second=column("growth"),
        machines_shared=len(machines) < int(there.sum()),
    )


def promised(rows: list[Row], index: int) -> tuple[int, int]:
    """Return promise and foreign of one node, from the words of the design alone."""
    row = rows[index]
    mates = [mate for mate in rows if mate.there and mate.machine == row.machine]
    measured = [mate for mate in mates if mate.measured]
    if not row.there or not row.measured:
        return 0, -1
    newest = max(measured, key=lambda mate: (mate.sampled_at, rows.index(mate)))
    used = newest.total - newest.available
    foreign = max(0, used - sum(mate.used + mate.freed for mate in mates))
    reserve = max(RESERVE_MIN, int(newest.total * 0.05))
    own = row.capacity - row.charged
    machine = newest.total - reserve - foreign - sum(mate.charged for mate in mates)
    return max(0, min(own, machine)), foreign


sizes = st.integers(0, 16 * GIB)


@st.composite
def nodes(draw: st.DrawFn) -> list[Row]:
    """Draw up to six nodes on up to three machines; samples of a machine differ in time."""
    rows = []
    for index in range(draw(st.integers(1, 6))):
        total = draw(st.integers(1, 16 * GIB))
        rows.append(
            Row(
                machine=draw(st.integers(0, 2)),
                total=total,
                available=draw(st.integers(0, total)),
                capacity=draw(sizes),
                reserved=draw(sizes),
                used=draw(sizes),
                sampled_at=draw(st.integers(0, 3)) * 10 + index,
                there=draw(st.sampled_from([True, True, True, False])),
                measured=draw(st.sampled_from([True, True, True, False])),
            )
        )
    return rows


@given(nodes())
def test_promises_are_the_smaller_of_the_two_sums(rows: list[Row]) -> None:
    promises = compute(view(rows), DEFAULT_LIMITS)
    for index, row in enumerate(rows):
        promise, foreign = promised(rows, index)
        assert promises.promise[index] == promise
        if foreign >= 0:
            assert promises.foreign[index] == foreign
            assert promises.known[index]
        elif row.there:
            assert not promises.known[index]
            assert promises.pressure[index] == 0


@given(nodes())
def test_nobody_promises_more_than_is_his(rows: list[Row]) -> None:
    promises = compute(view(rows), DEFAULT_LIMITS)
    for index, row in enumerate(rows):
        if row.there:
            assert 0 <= promises.promise[index] <= max(0, row.capacity)


def test_tasks_of_a_neighbour_are_not_foreign_and_are_charged_to_the_machine() -> None:
    a = Row(0, 8 * GIB, 3 * GIB, 6 * GIB, reserved=2 * GIB, used=GIB, sampled_at=2)
    b = Row(0, 8 * GIB, 8 * GIB, 6 * GIB, reserved=GIB, used=3 * GIB)
    promises = compute(view([a, b]), DEFAULT_LIMITS)
    assert promises.foreign.tolist() == [GIB, GIB]  # 5 used, 4 of them by tasks
    left = 8 * GIB - int(8 * GIB * 0.05) - GIB - (2 * GIB + 3 * GIB)
    assert promises.promise.tolist() == [left, left]


def test_newest_sample_without_memory_does_not_speak_for_the_machine() -> None:
    told = Row(0, 8 * GIB, 3 * GIB, 6 * GIB, reserved=0, used=0, sampled_at=1)
    mute = Row(0, 8 * GIB, 0, 6 * GIB, reserved=0, used=0, sampled_at=2, measured=False)
    promises = compute(view([told, mute]), DEFAULT_LIMITS)
    assert promises.foreign.tolist() == [5 * GIB, 5 * GIB]
    assert promises.promise[1] == 0


def test_capacity_is_what_the_agent_declares_or_what_the_system_leaves() -> None:
    assert capacity_bytes(8 * GIB, 3 * GIB, DEFAULT_LIMITS) == 3 * GIB
    assert capacity_bytes(100 * GIB, None, DEFAULT_LIMITS) == 95 * GIB
    assert capacity_bytes(GIB, None, DEFAULT_LIMITS) == GIB - RESERVE_MIN
    assert capacity_bytes(100 * MIB, None, DEFAULT_LIMITS) == 0


@pytest.mark.parametrize(
    ("used_percent", "own_percent", "growth", "expected"),
    [
        (79, 79, 0, "NONE"),
        (80, 10, 0, "WARN"),
        (10, 80, 0, "WARN"),
        (90, 10, 0, "HIGH"),
        (10, 95, 0, "CRITICAL"),
        (50, 10, -5, "NONE"),
        (40, 10, 1, "WARN"),  # 60 left at 1 a second
        (39, 10, 1, "NONE"),
        (40, 10, 4, "HIGH"),
        (40, 10, 20, "CRITICAL"),
    ],
)
def test_pressure_is_the_worst_of_machine_share_and_growth(
    used_percent: int, own_percent: int, growth: int, expected: str
) -> None:
    total = 100 * GIB
    row = Row(
        machine=0,
        total=total,
        available=total - used_percent * GIB,
        capacity=total,
        reserved=0,
        used=own_percent * GIB,
        growth=growth * GIB,
    )
    promises = compute(view([row]), DEFAULT_LIMITS)
    assert PRESSURES[int(promises.pressure[0])].value == expected

"""The ledger against a dictionary, and every refusal by name and number."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from allocator.ledger import (
    BYTES_MAX,
    NODES_MAX,
    RESERVATIONS_MAX,
    Ledger,
    LedgerFull,
    NodeBusy,
    NoRoom,
    StaleReservation,
    UnknownNode,
    ledger_bytes,
)
from allocator.pool import Pool, PoolExhausted

GIB = 1 << 30


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(4 << 20) as pool:
        yield pool


@pytest.fixture
def ledger(pool: Pool) -> Iterator[Ledger]:
    with Ledger(pool, 8, 1000) as ledger:
        ledger.set_node(0, 10 * GIB)
        ledger.set_node(1, 4 * GIB)
        yield ledger
        ledger.check()


def test_a_reservation_counts_on_its_node_until_it_is_released(ledger: Ledger) -> None:
    handle = ledger.reserve(0, 3 * GIB, task_id=17, attempt=2)
    assert ledger.reserved_bytes.tolist()[:2] == [3 * GIB, 0]
    assert ledger.count.tolist()[:2] == [1, 0]
    assert ledger.free_bytes(0) == 7 * GIB
    row = ledger.read(handle)
    assert (row.slot, row.task_id, row.attempt) == (0, 17, 2)
    assert (row.reserved_bytes, row.used_bytes) == (3 * GIB, 0)
    ledger.release(handle)
    assert ledger.reserved_bytes[0] == 0
    assert ledger.count[0] == 0


def test_the_charge_is_the_larger_of_reserved_and_used_for_each_reservation(
    ledger: Ledger,
) -> None:
    small = ledger.reserve(0, 1 * GIB, 1, 1)
    large = ledger.reserve(0, 5 * GIB, 2, 1)
    ledger.measure(small, 3 * GIB)
    ledger.measure(large, 2 * GIB)
    assert ledger.used_bytes[0] == 5 * GIB
    assert ledger.reserved_bytes[0] == 6 * GIB
    assert ledger.charged_bytes[0] == 8 * GIB
    ledger.resize(large, 1 * GIB)
    assert ledger.charged_bytes[0] == 5 * GIB
    ledger.release(small)
    ledger.release(large)
    assert ledger.charged_bytes[0] == ledger.used_bytes[0] == 0


def test_use_beyond_the_reservation_takes_no_room_from_others(ledger: Ledger) -> None:
    handle = ledger.reserve(1, 1 * GIB, 1, 1)
    ledger.measure(handle, 100 * GIB)
    assert ledger.reserve(1, 3 * GIB, 2, 1) > 0


def test_a_reservation_beyond_the_capacity_is_refused_with_the_numbers(ledger: Ledger) -> None:
    ledger.reserve(1, 3 * GIB, 1, 1)
    with pytest.raises(NoRoom, match="node 1: asked 1073741825 bytes, free 1073741824") as refusal:
        ledger.reserve(1, GIB + 1, 2, 1)
    assert refusal.value.slot == 1
    assert refusal.value.asked_bytes == GIB + 1
    assert refusal.value.free_bytes == GIB
    assert ledger.count[1] == 1
    assert ledger.reserve(1, GIB, 2, 1) > 0


def test_growing_beyond_the_capacity_is_refused_and_shrinking_is_not(ledger: Ledger) -> None:
    handle = ledger.reserve(1, 3 * GIB, 1, 1)
    with pytest.raises(NoRoom) as refusal:
        ledger.resize(handle, 5 * GIB)
    assert (refusal.value.asked_bytes, refusal.value.free_bytes) == (2 * GIB, GIB)
    assert ledger.read(handle).reserved_bytes == 3 * GIB
    ledger.resize(handle, 4 * GIB)
    ledger.resize(handle, 0)
    assert ledger.free_bytes(1) == 4 * GIB


def test_a_capacity_lowered_below_the_sum_only_refuses_more(ledger: Ledger) -> None:
    handle = ledger.reserve(0, 8 * GIB, 1, 1)
    ledger.set_node(0, 5 * GIB)
    assert ledger.free_bytes(0) == -3 * GIB
    with pytest.raises(NoRoom):
        ledger.reserve(0, 0, 2, 1)
    with pytest.raises(NoRoom):
        ledger.resize(handle, 8 * GIB + 1)
    ledger.resize(handle, 7 * GIB)
    ledger.resize(handle, 5 * GIB)
    assert ledger.reserve(0, 0, 2, 1) > 0


def test_a_second_release_is_caught_even_when_the_record_is_used_again(ledger: Ledger) -> None:
    first = ledger.reserve(0, 5, 1, 1)
    ledger.release(first)
    second = ledger.reserve(0, 7, 2, 1)
    assert first & 0xFFFFFFFF == second & 0xFFFFFFFF
    for call in (
        lambda: ledger.release(first),
        lambda: ledger.resize(first, 1),
        lambda: ledger.measure(first, 1),
        lambda: ledger.read(first),
    ):
        with pytest.raises(StaleReservation, match="is not live"):
            call()
    assert ledger.reserved_bytes[0] == 7


@pytest.mark.parametrize("handle", [0, -1, 1, 1 << 32, (1 << 32) + 5000, 2**63 - 1, -(2**63)])
def test_a_handle_that_was_never_given_is_refused(ledger: Ledger, handle: int) -> None:
    with pytest.raises(StaleReservation):
        ledger.release(handle)


@pytest.mark.parametrize("size_bytes", [-1, BYTES_MAX + 1])
def test_sizes_out_of_bounds_are_refused(ledger: Ledger, size_bytes: int) -> None:
    handle = ledger.reserve(0, 1, 1, 1)
    for call in (
        lambda: ledger.reserve(0, size_bytes, 1, 1),
        lambda: ledger.resize(handle, size_bytes),
        lambda: ledger.measure(handle, size_bytes),
        lambda: ledger.set_node(0, size_bytes),
    ):
        with pytest.raises(ValueError, match=f"{size_bytes} bytes are outside"):
            call()
    assert ledger.reserved_bytes[0] == 1


def test_unknown_nodes_are_refused(ledger: Ledger) -> None:
    for slot in (2, -1, 8, 1 << 20):
        with pytest.raises(UnknownNode, match=f"node {slot} "):
            ledger.reserve(slot, 1, 1, 1)
        with pytest.raises(UnknownNode):
            ledger.clear_node(slot)
        assert ledger.walk(slot) == ()
    for slot in (-1, 8):
        with pytest.raises(UnknownNode):
            ledger.set_node(slot, 1)
        with pytest.raises(UnknownNode):
            ledger.free_bytes(slot)


def test_a_node_is_forgotten_only_without_reservations(ledger: Ledger) -> None:
    handle = ledger.reserve(1, 1, 1, 1)
    with pytest.raises(NodeBusy, match="node 1 still has 1 reservations"):
        ledger.clear_node(1)
    ledger.release(handle)
    ledger.clear_node(1)
    assert ledger.capacity_bytes[1] == 0
    with pytest.raises(UnknownNode):
        ledger.reserve(1, 0, 1, 1)
    ledger.set_node(1, 5)
    assert ledger.reserve(1, 5, 1, 1) > 0


def test_the_number_of_reservations_is_bounded(pool: Pool) -> None:
    with Ledger(pool, 1, 300) as ledger:
        ledger.set_node(0, GIB)
        handles = [ledger.reserve(0, 1, task, 1) for task in range(300)]
        with pytest.raises(LedgerFull, match="all 300 reservations"):
            ledger.reserve(0, 1, 300, 1)
        ledger.release(handles[150])
        assert ledger.reserve(0, 1, 300, 1) > 0
        ledger.check()


def test_records_come_from_the_pool_in_blocks_and_a_full_pool_refuses() -> None:
    with Pool(1 << 17) as pool, Ledger(pool, 4, 100_000) as ledger:
        ledger.set_node(0, BYTES_MAX)
        assert ledger.bytes_used() == pool.statistics().used_bytes
        first = ledger.reserve(0, 1, 0, 1)
        count = 1
        while count % 256 or pool.statistics().largest_free_bytes >= 256 * 48:
            ledger.reserve(0, 1, count, 1)
            assert ledger.bytes_used() == pool.statistics().used_bytes
            count += 1
        assert count > 256
        with pytest.raises(PoolExhausted, match="a block of reservations"):
            ledger.reserve(0, 1, count, 1)
        assert ledger.reserved_bytes[0] == ledger.count[0] == count
        ledger.check()
        ledger.release(first)
        assert ledger.reserve(0, 1, 0, 2) > 0


def test_all_memory_is_given_back_at_close(pool: Pool) -> None:
    with Ledger(pool, 100, 1000) as ledger:
        ledger.set_node(5, 1000)
        for task in range(600):
            ledger.reserve(5, 1, task, 1)
    assert pool.statistics().used_bytes == 0
    with pytest.raises(TypeError):
        ledger.reserve(5, 1, 1, 1)


@pytest.mark.parametrize(
    ("nodes_max", "reservations_max", "message"),
    [
        (0, 1, "nodes_max is 0"),
        (NODES_MAX + 1, 1, "nodes_max is"),
        (1, 0, "reservations_max is 0"),
        (1, RESERVATIONS_MAX + 1, "reservations_max is"),
    ],
)
def test_a_ledger_out_of_bounds_is_refused(
    pool: Pool, nodes_max: int, reservations_max: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Ledger(pool, nodes_max, reservations_max)


@pytest.mark.parametrize(("nodes_max", "reservations_max"), [(1, 1), (7, 256), (100, 700)])
def test_the_foretold_size_is_what_a_full_ledger_takes(
    pool: Pool, nodes_max: int, reservations_max: int
) -> None:
    with Ledger(pool, nodes_max, reservations_max) as ledger:
        ledger.set_node(0, BYTES_MAX)
        for task in range(reservations_max):
            ledger.reserve(0, 1, task, 1)
        assert ledger_bytes(nodes_max, reservations_max) == pool.statistics().used_bytes
    with pytest.raises(ValueError, match="nodes_max is 0"):
        ledger_bytes(0, reservations_max)


def test_a_ledger_larger_than_its_pool_is_refused(pool: Pool) -> None:
    with pytest.raises(PoolExhausted, match="a ledger of 1000000 nodes"):
        Ledger(pool, 1_000_000, 1)


def test_columns_cannot_be_written_from_outside(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="read-only"):
        ledger.capacity_bytes[0] = 1


def test_records_are_listed_by_node_task_and_attempt(ledger: Ledger) -> None:
    for slot, task, attempt in ((1, 3, 1), (0, 9, 2), (0, 9, 1), (1, 2, 1)):
        ledger.reserve(slot, task, task, attempt)
    rows = [(row.slot, row.task_id, row.attempt) for row in ledger.records()]
    assert rows == [(0, 9, 1), (0, 9, 2), (1, 2, 1), (1, 3, 1)]
    assert [row.task_id for row in ledger.walk(1)] == [2, 3]


def test_threads_never_reserve_more_than_the_capacity(pool: Pool) -> None:
    with Ledger(pool, 1, 1000) as ledger:
        ledger.set_node(0, 100)
        failures: list[str] = []

        def work(owner: int) -> None:
            held: list[int] = []
            for number in range(2000):
                try:
                    held.append(ledger.reserve(0, 7 + number % 5, owner, 1))
                except NoRoom:
                    if held:
                        ledger.release(held.pop())
                if ledger.reserved_bytes[0] > 100:
                    failures.append(f"{ledger.reserved_bytes[0]} reserved")
            for handle in held:
                ledger.release(handle)

        threads = [threading.Thread(target=work, args=(owner,)) for owner in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert ledger.count[0] == ledger.reserved_bytes[0] == 0
        ledger.check()


@dataclass
class Model:
    """What a ledger should hold: capacities, and per live handle [slot, task, reserved, used]."""

    capacity: dict[int, int] = field(default_factory=dict)
    live: dict[int, list[int]] = field(default_factory=dict)

    def reserved(self, slot: int) -> int:
        return sum(row[2] for row in self.live.values() if row[0] == slot)


class LedgerMachine(RuleBasedStateMachine):
    """Random calls on a small ledger in a pool that its second block of records fills."""

    SLOTS = st.integers(-1, 4)
    SIZES = st.one_of(st.integers(0, 40), st.sampled_from([-1, BYTES_MAX, BYTES_MAX + 1]))

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(1 << 16)
        self.ledger = Ledger(self.pool, 4, 280)
        self.filler = self.pool.allocate(self.pool.statistics().largest_free_bytes - 16_500)
        self.model = Model()
        self.past: list[int] = [0]

    def teardown(self) -> None:
        self.ledger.close()
        self.pool.free(self.filler)
        assert self.pool.statistics().used_bytes == 0
        self.pool.close()

    @rule(slot=SLOTS, size=SIZES)
    def set_node(self, slot: int, size: int) -> None:
        if not 0 <= size <= BYTES_MAX:
            with pytest.raises(ValueError, match="outside"):
                self.ledger.set_node(slot, size)
        elif not 0 <= slot < 4:
            with pytest.raises(UnknownNode):
                self.ledger.set_node(slot, size)
        else:
            self.ledger.set_node(slot, size)
            self.model.capacity[slot] = size

    @rule(slot=SLOTS)
    def clear_node(self, slot: int) -> None:
        if slot not in self.model.capacity:
            with pytest.raises(UnknownNode):
                self.ledger.clear_node(slot)
        elif any(row[0] == slot for row in self.model.live.values()):
            with pytest.raises(NodeBusy):
                self.ledger.clear_node(slot)
        else:
            self.ledger.clear_node(slot)
            del self.model.capacity[slot]

    @rule(slot=SLOTS, size=SIZES, task=st.integers(0, 2**63 - 1), count=st.sampled_from([1, 1, 99]))
    def reserve(self, slot: int, size: int, task: int, count: int) -> None:
        for _ in range(count):
            free = self.model.capacity.get(slot, 0) - self.model.reserved(slot)
            if not 0 <= size <= BYTES_MAX:
                with pytest.raises(ValueError, match="outside"):
                    self.ledger.reserve(slot, size, task, 1)
            elif slot not in self.model.capacity:
                with pytest.raises(UnknownNode):
                    self.ledger.reserve(slot, size, task, 1)
            elif size > free:
                with pytest.raises(NoRoom) as refusal:
                    self.ledger.reserve(slot, size, task, 1)
                assert (refusal.value.asked_bytes, refusal.value.free_bytes) == (size, free)
            elif len(self.model.live) == 256:
                with pytest.raises(PoolExhausted):
                    self.ledger.reserve(slot, size, task, 1)
            else:
                handle = self.ledger.reserve(slot, size, task, 1)
                assert handle not in self.past
                self.past.append(handle)
                self.model.live[handle] = [slot, task, size, 0]

    @rule(data=st.data(), size=SIZES)
    def resize(self, data: st.DataObject, size: int) -> None:
        handle = data.draw(st.sampled_from(self.past))
        row = self.model.live.get(handle)
        if not 0 <= size <= BYTES_MAX:
            with pytest.raises(ValueError, match="outside"):
                self.ledger.resize(handle, size)
        elif row is None:
            with pytest.raises(StaleReservation):
                self.ledger.resize(handle, size)
        else:
            free = self.model.capacity[row[0]] - self.model.reserved(row[0])
            more = size - row[2]
            if more > max(free, 0):
                with pytest.raises(NoRoom) as refusal:
                    self.ledger.resize(handle, size)
                assert (refusal.value.asked_bytes, refusal.value.free_bytes) == (more, free)
            else:
                self.ledger.resize(handle, size)
                row[2] = size

    @rule(data=st.data(), size=SIZES)
    def measure(self, data: st.DataObject, size: int) -> None:
        handle = data.draw(st.sampled_from(self.past))
        row = self.model.live.get(handle)
        if not 0 <= size <= BYTES_MAX:
            with pytest.raises(ValueError, match="outside"):
                self.ledger.measure(handle, size)
        elif row is None:
            with pytest.raises(StaleReservation):
                self.ledger.measure(handle, size)
        else:
            self.ledger.measure(handle, size)
            row[3] = size

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(self.past))
        if self.model.live.pop(handle, None) is None:
            with pytest.raises(StaleReservation):
                self.ledger.release(handle)
        else:
            self.ledger.release(handle)

    @invariant()
    def sums_and_records_agree(self) -> None:
        ledger, rows = self.ledger, list(self.model.live.values())
        ledger.check()
        for slot in range(4):
            mine = [row for row in rows if row[0] == slot]
            assert ledger.capacity_bytes[slot] == self.model.capacity.get(slot, 0)
            assert ledger.reserved_bytes[slot] == sum(row[2] for row in mine)
            assert ledger.used_bytes[slot] == sum(row[3] for row in mine)
            assert ledger.charged_bytes[slot] == sum(max(row[2], row[3]) for row in mine)
            assert ledger.count[slot] == len(mine)
        listed = {
            row.handle: [row.slot, row.task_id, row.reserved_bytes, row.used_bytes]
            for row in ledger.records()
        }
        assert listed == self.model.live
        pool_bytes = self.pool.statistics().used_bytes - (self.filler.size_bytes + 15) // 16 * 16
        assert ledger.bytes_used() == pool_bytes


TestLedgerAgainstAModel = LedgerMachine.TestCase
TestLedgerAgainstAModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

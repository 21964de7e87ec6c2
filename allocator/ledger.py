"""Ledger: the memory set aside on every node, as records in a memory pool.

Rule: what is reserved on a node never grows beyond its capacity, and every reservation is given
back at most once. Each call is atomic (the C side locks); the columns are views of the pool's
memory that show every change; kept beyond `close` they show whatever the pool puts there next.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from allocator.pool import Pool, PoolExhausted, ffi, lib

BYTES_MAX: int = lib.MASS_LEDGER_BYTES_MAX
"""The largest capacity, reservation and use: 2^53, exact in a double too."""
NODES_MAX: int = lib.MASS_LEDGER_NODES_MAX
RESERVATIONS_MAX: int = lib.MASS_LEDGER_RESERVATIONS_MAX

_OK: int = lib.MASS_LEDGER_OK


class LedgerError(Exception):
    """A call on the ledger was refused; nothing changed."""


class NoRoom(LedgerError):
    """The node has less free than was asked; it may have more later."""

    def __init__(self, slot: int, asked_bytes: int, free_bytes: int) -> None:
        super().__init__(f"node {slot}: asked {asked_bytes} bytes, free {free_bytes} bytes")
        self.slot = slot
        self.asked_bytes = asked_bytes
        self.free_bytes = free_bytes


class LedgerFull(LedgerError):
    """All records are in use."""

    def __init__(self, reservations_max: int) -> None:
        super().__init__(f"all {reservations_max} reservations are in use")
        self.reservations_max = reservations_max


class UnknownNode(LedgerError):
    """No capacity was set for this slot, or it lies outside the ledger."""

    def __init__(self, slot: int) -> None:
        super().__init__(f"node {slot} is not in the ledger")
        self.slot = slot


class NodeBusy(LedgerError):
    """The node still has reservations."""

    def __init__(self, slot: int, count: int) -> None:
        super().__init__(f"node {slot} still has {count} reservations")
        self.slot = slot
        self.count = count


class StaleReservation(LedgerError):
    """The reservation was released already, or never made."""

    def __init__(self, handle: int) -> None:
        super().__init__(f"reservation {handle:#x} is not live")
        self.handle = handle


@dataclass(frozen=True, slots=True)
class Reservation:
    """One reservation as it was when read."""

    handle: int
    slot: int
    task_id: int
    attempt: int
    reserved_bytes: int
    used_bytes: int


class Ledger:
    """The reservations of at most `nodes_max` nodes, at most `reservations_max` of them.

    Columns, int64, read-only, indexed by slot, 0 where there is no node: `capacity_bytes`;
    `reserved_bytes` (sum); `charged_bytes` (sum of max(reserved, used)); `used_bytes` (sum);
    `count`. They show every change at once.
    """

    def __init__(self, pool: Pool, nodes_max: int, reservations_max: int) -> None:
        """Take the columns from the pool; records follow in blocks of 256 as they are needed.

        Raises:
            ValueError: a maximum is out of bounds.
            PoolExhausted: the pool has no room for the columns.
        """
        _check_bounds(nodes_max, reservations_max)
        self.nodes_max = nodes_max
        self.reservations_max = reservations_max
        self._handle = pool.handle  # keeps the pool's mapping as long as the ledger and its views
        self._ledger: Any = lib.mass_ledger_create(self._handle, nodes_max, reservations_max)
        if self._ledger == ffi.NULL:
            raise PoolExhausted(f"a ledger of {nodes_max} nodes")
        self.capacity_bytes = self._column(lib.MASS_LEDGER_CAPACITY)
        self.reserved_bytes = self._column(lib.MASS_LEDGER_RESERVED)
        self.charged_bytes = self._column(lib.MASS_LEDGER_CHARGED)
        self.used_bytes = self._column(lib.MASS_LEDGER_USED)
        self.count = self._column(lib.MASS_LEDGER_COUNT)

    def close(self) -> None:
        """Give all memory back to the pool; a second call does nothing."""
        if self._ledger is None:
            return
        ledger, self._ledger = self._ledger, None  # from now on cffi refuses every call
        nothing: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self.capacity_bytes = self.reserved_bytes = self.charged_bytes = nothing
        self.used_bytes = self.count = nothing
        lib.mass_ledger_destroy(ledger)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- nodes ---

    def set_node(self, slot: int, capacity_bytes: int) -> None:
        """Set what a node can give, 0..BYTES_MAX, for a new node or a known one.

        A capacity below what is reserved is taken: it is a fact. Then nothing more is granted
        until enough was released.

        Raises:
            UnknownNode: the slot is outside 0..nodes_max - 1.
            ValueError: the capacity is out of bounds.
        """
        _check_bytes("capacity", capacity_bytes)
        code = lib.mass_ledger_set_node(self._ledger, slot, capacity_bytes)
        if code != _OK:
            raise UnknownNode(slot)

    def clear_node(self, slot: int) -> None:
        """Forget a node.

        Raises:
            UnknownNode: the ledger has no such node.
            NodeBusy: it still has reservations.
        """
        code = lib.mass_ledger_clear_node(self._ledger, slot)
        if code == lib.MASS_LEDGER_E_NODE_BUSY:
            raise NodeBusy(slot, int(self.count[slot]))
        if code != _OK:
            raise UnknownNode(slot)

    def free_bytes(self, slot: int) -> int:
        """Return capacity minus reserved; negative after the capacity was lowered.

        Raises:
            UnknownNode: the slot is outside 0..nodes_max - 1.
        """
        if not 0 <= slot < self.nodes_max:
            raise UnknownNode(slot)
        return int(self.capacity_bytes[slot]) - int(self.reserved_bytes[slot])

    # --- reservations ---

    def reserve(self, slot: int, size_bytes: int, task_id: int, attempt: int) -> int:
        """Set `size_bytes` (0..BYTES_MAX) aside and return the handle, always above 0.

        The owner is any pair of int64 and int32; the ledger only keeps it.

        Raises:
            NoRoom: the node has less free.
            UnknownNode: the ledger has no such node.
            LedgerFull: `reservations_max` reservations are in use.
            PoolExhausted: the pool has no room for more records.
            ValueError: the size is out of bounds.
        """
        handle: int = lib.mass_ledger_reserve(self._ledger, slot, size_bytes, task_id, attempt)
        if handle > 0:
            return handle
        if handle == lib.MASS_LEDGER_E_NO_ROOM:
            raise NoRoom(slot, size_bytes, self.free_bytes(slot))
        if handle == lib.MASS_LEDGER_E_NODE:
            raise UnknownNode(slot)
        if handle == lib.MASS_LEDGER_E_FULL:
            raise LedgerFull(self.reservations_max)
        if handle == lib.MASS_LEDGER_E_EXHAUSTED:
            raise PoolExhausted("a block of reservations")
        raise _size_error("reservation", size_bytes)

    def resize(self, handle: int, size_bytes: int) -> None:
        """Change what is set aside; less always succeeds.

        Raises:
            NoRoom: the node has less free than is asked in addition.
            StaleReservation: the reservation is not live.
            ValueError: the size is out of bounds.
        """
        code = lib.mass_ledger_resize(self._ledger, handle, size_bytes)
        if code == lib.MASS_LEDGER_E_NO_ROOM:
            held = self.read(handle)
            raise NoRoom(held.slot, size_bytes - held.reserved_bytes, self.free_bytes(held.slot))
        self._raise_for(code, handle, size_bytes)

    def measure(self, handle: int, used_bytes: int) -> None:
        """Set what the owner was measured to use; it may exceed what is reserved.

        Raises:
            StaleReservation: the reservation is not live.
            ValueError: the use is out of bounds.
        """
        code = lib.mass_ledger_measure(self._ledger, handle, used_bytes)
        self._raise_for(code, handle, used_bytes)

    def release(self, handle: int) -> None:
        """Give a reservation back.

        Raises:
            StaleReservation: it is not live; nothing changed.
        """
        if lib.mass_ledger_release(self._ledger, handle) != _OK:
            raise StaleReservation(handle)

    # --- reading ---

    def read(self, handle: int) -> Reservation:
        """Return one reservation.

        Raises:
            StaleReservation: it is not live.
        """
        entry = ffi.new("mass_ledger_entry_t *")
        if lib.mass_ledger_read(self._ledger, handle, entry) != _OK:
            raise StaleReservation(handle)
        return _reservation(entry)

    def walk(self, slot: int) -> tuple[Reservation, ...]:
        """Return a node's reservations by task and attempt; empty for an unknown node."""
        return self._walk(slot) if slot >= 0 else ()

    def records(self) -> tuple[Reservation, ...]:
        """Return all reservations, by slot, task and attempt."""
        return self._walk(-1)

    def bytes_used(self) -> int:
        """Return the bytes of all blocks of the ledger, as the pool counts them."""
        size: int = lib.mass_ledger_bytes_used(self._ledger)
        return size

    def check(self) -> None:
        """Assert that every sum equals what its records say. Linear in all it keeps."""
        assert lib.mass_ledger_check(self._ledger) == 1, "the ledger contradicts itself"

    # --- inside ---

    def _column(self, column: int) -> NDArray[np.int64]:
        handle = self._handle
        pointer = ffi.gc(lib.mass_ledger_column(self._ledger, column), lambda _: handle)
        view: NDArray[np.int64] = np.frombuffer(
            ffi.buffer(pointer, 8 * self.nodes_max), dtype=np.int64
        )
        view.flags.writeable = False
        return view

    def _walk(self, slot: int) -> tuple[Reservation, ...]:
        length = lib.mass_ledger_walk(self._ledger, slot, ffi.NULL, 0)
        while True:
            entries = ffi.new("mass_ledger_entry_t[]", length)
            found = lib.mass_ledger_walk(self._ledger, slot, entries, length)
            if found <= length:
                break
            length = found  # another thread reserved between the two calls
        rows = (_reservation(entries[i]) for i in range(found))
        return tuple(sorted(rows, key=lambda row: (row.slot, row.task_id, row.attempt, row.handle)))

    def _raise_for(self, code: int, handle: int, size_bytes: int) -> None:
        if code == lib.MASS_LEDGER_E_STALE:
            raise StaleReservation(handle)
        if code != _OK:
            raise _size_error(f"reservation {handle:#x}", size_bytes)


def ledger_bytes(nodes_max: int, reservations_max: int) -> int:
    """Return what a ledger with reservations_max reservations takes from a pool.

    Raises:
        ValueError: a maximum is out of bounds.
    """
    _check_bounds(nodes_max, reservations_max)
    size: int = lib.mass_ledger_size(nodes_max, reservations_max)
    return size


def _check_bounds(nodes_max: int, reservations_max: int) -> None:
    if not 1 <= nodes_max <= NODES_MAX:
        raise ValueError(f"nodes_max is {nodes_max}, allowed are 1..{NODES_MAX}")
    if not 1 <= reservations_max <= RESERVATIONS_MAX:
        raise ValueError(
            f"reservations_max is {reservations_max}, allowed are 1..{RESERVATIONS_MAX}"
        )


def _size_error(thing: str, size_bytes: int) -> ValueError:
    return ValueError(f"{thing}: {size_bytes} bytes are outside 0..{BYTES_MAX}")


def _check_bytes(thing: str, size_bytes: int) -> None:
    if not 0 <= size_bytes <= BYTES_MAX:
        raise _size_error(thing, size_bytes)


def _reservation(entry: Any) -> Reservation:
    return Reservation(
        handle=entry.handle,
        slot=entry.slot,
        task_id=entry.task_id,
        attempt=entry.attempt,
        reserved_bytes=entry.reserved_bytes,
        used_bytes=entry.used_bytes,
    )

"""Tails: the newest output of running tasks, kept in a memory pool.

Rule: a tail never holds more than its last 64 KiB, and never hinders anything more important: it
can be told to stop, which gives all its memory back. Bytes lie in the pool, in one block per tail
that doubles from 1 KiB; outside it only a small record per tail. For one thread.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from allocator.pool import Pool, PoolExhausted, ffi, lib

TAIL_BYTES_MIN = 1024
TAIL_BYTES_MAX = 65536
"""What `read` returns at most; also the largest block."""


class TailKey(NamedTuple):
    """One stream of one attempt of a task."""

    task_id: int
    attempt: int
    stream: str


class TailsFull(Exception):
    """As many tails are kept as were allowed; drop those of ended tasks."""


class _Ring:
    """A block of the pool: `length_bytes` of output from `start` on, around the end."""

    __slots__ = ("block", "length_bytes", "size_bytes", "start")

    def __init__(self, block: Any, size_bytes: int) -> None:
        self.block = block
        self.size_bytes = size_bytes
        self.start = 0
        self.length_bytes = 0


class Tails:
    """The tails of at most `tails_max` streams."""

    def __init__(self, pool: Pool, tails_max: int) -> None:
        """Take nothing yet.

        Raises:
            ValueError: tails_max is below 1.
        """
        if tails_max < 1:
            raise ValueError(f"tails_max is {tails_max}, allowed is 1 or more")
        self.tails_max = tails_max
        self.is_stopped = False
        self.dropped_bytes = 0
        """Output that came while stopped."""
        self._handle = pool.handle
        self._rings: dict[TailKey, _Ring] = {}
        self._bytes_used = 0

    def __len__(self) -> int:
        return len(self._rings)

    def append(self, key: TailKey, output: bytes) -> None:
        """Add output to a tail; while stopped only count it.

        Raises:
            PoolExhausted: the pool has no room for the tail to grow; it stays as it was.
            TailsFull: the key is new and `tails_max` tails are kept.
        """
        if self.is_stopped:
            self.dropped_bytes += len(output)
            return
        output = output[-TAIL_BYTES_MAX:]
        if not output:
            return
        ring = self._rings.get(key)
        if ring is None:
            ring = self._add(key, len(output))
        elif ring.length_bytes + len(output) > ring.size_bytes < TAIL_BYTES_MAX:
            self._grow(ring, ring.length_bytes + len(output))
        _write(ring, output)

    def read(self, key: TailKey) -> bytes:
        """Return the last TAIL_BYTES_MAX bytes or fewer, oldest first; empty for an unknown key."""
        ring = self._rings.get(key)
        if ring is None:
            return b""
        until_end = min(ring.length_bytes, ring.size_bytes - ring.start)
        first: bytes = ffi.buffer(ring.block + ring.start, until_end)[:]
        second: bytes = ffi.buffer(ring.block, ring.length_bytes - until_end)[:]
        return first + second

    def drop(self, key: TailKey) -> None:
        """Forget a tail and free its block; an unknown key is ignored."""
        ring = self._rings.pop(key, None)
        if ring is not None:
            self._bytes_used -= lib.mass_pool_size_of(self._handle, ring.block)
            lib.mass_pool_free(self._handle, ring.block)

    def stop(self) -> None:
        """Drop every tail and keep none until `resume`."""
        self.is_stopped = True
        for key in list(self._rings):
            self.drop(key)

    def resume(self) -> None:
        """Keep tails again, from what comes now."""
        self.is_stopped = False

    def bytes_used(self) -> int:
        """Return the bytes of all blocks, as the pool counts them."""
        return self._bytes_used

    def _add(self, key: TailKey, needed_bytes: int) -> _Ring:
        if len(self._rings) >= self.tails_max:
            raise TailsFull(f"{self.tails_max} output tails are kept already")
        size_bytes = _size_for(needed_bytes)
        block = lib.mass_pool_allocate(self._handle, size_bytes)
        if block == ffi.NULL:
            raise PoolExhausted(f"an output tail of {size_bytes} bytes")
        self._bytes_used += lib.mass_pool_size_of(self._handle, block)
        ring = self._rings[key] = _Ring(ffi.cast("char *", block), size_bytes)
        return ring

    def _grow(self, ring: _Ring, needed_bytes: int) -> None:
        """Enlarge a block; below the largest size a ring has never gone around its end."""
        assert ring.start == 0
        size_bytes = _size_for(needed_bytes)
        before = lib.mass_pool_size_of(self._handle, ring.block)
        block = lib.mass_pool_reallocate(self._handle, ring.block, size_bytes)
        if block == ffi.NULL:
            raise PoolExhausted(f"an output tail of {size_bytes} bytes")
        self._bytes_used += lib.mass_pool_size_of(self._handle, block) - before
        ring.block = ffi.cast("char *", block)
        ring.size_bytes = size_bytes


def _size_for(needed_bytes: int) -> int:
    """Return the smallest power of two that holds as much, within the bounds of a block."""
    wanted = max(needed_bytes, TAIL_BYTES_MIN)
    return min(1 << (wanted - 1).bit_length(), TAIL_BYTES_MAX)


def _write(ring: _Ring, output: bytes) -> None:
    """Write behind the newest byte; what does not fit overwrites the oldest."""
    end = (ring.start + ring.length_bytes) % ring.size_bytes
    until_end = min(len(output), ring.size_bytes - end)
    ffi.memmove(ring.block + end, output[:until_end], until_end)
    ffi.memmove(ring.block, output[until_end:], len(output) - until_end)
    over_bytes = max(ring.length_bytes + len(output) - ring.size_bytes, 0)
    ring.start = (ring.start + over_bytes) % ring.size_bytes
    ring.length_bytes += len(output) - over_bytes

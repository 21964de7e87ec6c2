"""Pool: the Python face of the C memory pool, whose specification is `memory_allocator.h`.

Rule: this is the one module that loads `allocator._pool`; the others of this package take `ffi` and
`lib` from here. Every code of the C side becomes one exception, made by `error_for`.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

# The compiled module has no types of its own: `ffi` and `lib` are Any here and wherever they go.
from allocator._pool import ffi, lib

__all__ = [
    "ALIGNMENT_BYTES",
    "POOL_BYTES_MAX",
    "POOL_BYTES_MIN",
    "Block",
    "Pool",
    "PoolError",
    "PoolExhausted",
    "PoolStatistics",
    "PoolUnsound",
    "WrongFree",
    "error_for",
    "ffi",
    "lib",
]

POOL_BYTES_MIN: int = lib.MASS_POOL_BYTES_MIN
POOL_BYTES_MAX: int = lib.MASS_POOL_BYTES_MAX
ALIGNMENT_BYTES: int = lib.MASS_POOL_ALIGNMENT
_SIZE_BYTES_MAX = 2**64 - 1  # size_t; more than that never reaches the C side


class PoolError(Exception):
    """A call on a memory pool was refused; nothing changed."""


class PoolExhausted(PoolError):
    """The pool has no room for what was asked; it may have some after a free."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the memory pool has no room for {what}")


class WrongFree(PoolError):
    """A block was freed or reallocated that is not a live block of this pool."""


class PoolUnsound(PoolError):
    """The pool's state is damaged: somebody wrote where nothing of theirs was."""


_KINDS: dict[int, type[PoolError]] = {
    lib.MASS_POOL_E_FOREIGN: WrongFree,
    lib.MASS_POOL_E_INTERIOR: WrongFree,
    lib.MASS_POOL_E_DOUBLE_FREE: WrongFree,
    lib.MASS_POOL_E_DAMAGED: PoolUnsound,
    lib.MASS_POOL_E_OVERRUN: PoolUnsound,
    lib.MASS_POOL_E_UNSOUND: PoolUnsound,
}


def error_for(code: int, what: str) -> PoolError:
    """Return the exception for a code of the C side other than MASS_POOL_OK.

    `what` completes "no room for ..." and opens every other message: name the thing and its size.
    """
    if code in {lib.MASS_POOL_E_EXHAUSTED, lib.MASS_POOL_E_SIZE}:
        return PoolExhausted(what)
    text = ffi.string(lib.mass_pool_error_text(code)).decode()
    return _KINDS.get(code, PoolError)(f"{what}: {text}")


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """What a pool holds now, and what happened to it since it was made (the counts)."""

    capacity_bytes: int
    used_bytes: int
    used_peak_bytes: int
    largest_free_bytes: int
    live_count: int
    allocation_count: int
    reallocation_count: int
    free_count: int
    failure_count: int
    wrong_free_count: int
    damage_count: int


class Block:
    """A live block of a pool; made by `Pool.allocate`, ended by `Pool.free` or `Pool.reset`.

    Views are the block's own memory. One that is kept beyond free or reallocate shows whatever the
    pool puts there next (its mapping stays as long as any view does).
    """

    __slots__ = ("_address", "_reset_count", "size_bytes")

    def __init__(self, address: Any, size_bytes: int, reset_count: int) -> None:
        self._address = address
        self._reset_count = reset_count
        self.size_bytes = size_bytes

    @property
    def address(self) -> int:
        """The block's address, a multiple of 16.

        Raises:
            WrongFree: the block was freed.
        """
        return int(ffi.cast("uintptr_t", self._live_address()))

    def view(self) -> memoryview:
        """Return the block's bytes, writable, as many as were asked for.

        Raises:
            WrongFree: the block was freed.
        """
        return memoryview(ffi.buffer(self._live_address(), self.size_bytes))

    def _live_address(self) -> Any:
        if self._address is None:
            raise WrongFree(f"a block of {self.size_bytes} bytes: it was freed")
        return self._address


class Pool:
    """A memory pool of fixed size with a mapping of its own; safe from any thread.

    `handle` is the C pool, for modules of this package that call `lib` themselves. The mapping ends
    with close() or with the last reference to the pool, its handle, its blocks and their views.
    """

    def __init__(self, size_bytes: int) -> None:
        """Make a pool of at most size_bytes, its own state (about 1/64) included.

        Raises:
            PoolError: the size is out of bounds, or the system refuses the mapping.
        """
        if not POOL_BYTES_MIN <= size_bytes <= POOL_BYTES_MAX:
            raise PoolError(
                f"a pool of {size_bytes} bytes: the size must lie between "
                f"{POOL_BYTES_MIN} and {POOL_BYTES_MAX} bytes"
            )
        handle = lib.mass_pool_create(size_bytes)
        if handle == ffi.NULL:
            raise PoolError(f"a pool of {size_bytes} bytes: the system refused the mapping")
        self._handle: Any = ffi.gc(handle, lib.mass_pool_destroy, size_bytes)
        self._reset_count = 0

    @property
    def handle(self) -> Any:
        """The `mass_pool_t *`.

        Raises:
            PoolError: the pool was closed.
        """
        if self._handle is None:
            raise PoolError("the memory pool was closed")
        return self._handle

    def close(self) -> None:
        """Let go of the C pool; a second call does nothing."""
        self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def allocate(self, size_bytes: int, alignment_bytes: int = ALIGNMENT_BYTES) -> Block:
        """Return a block of size_bytes (0 counts as 1) at a multiple of alignment_bytes.

        Its content is whatever was there before.

        Raises:
            PoolExhausted: no free block is large enough.
            PoolError: the alignment is not a power of two.
            ValueError: the size is negative.
        """
        _check_size(size_bytes)
        handle = self.handle
        address = ffi.NULL
        if size_bytes <= _SIZE_BYTES_MAX and 0 <= alignment_bytes <= _SIZE_BYTES_MAX:
            address = lib.mass_pool_allocate_aligned(handle, alignment_bytes, size_bytes)
        if address == ffi.NULL:
            raise self._refusal(size_bytes, alignment_bytes)
        return Block(_keeping(address, handle), size_bytes, self._reset_count)

    def reallocate(self, block: Block, size_bytes: int) -> None:
        """Change the block's size and keep its content up to the smaller one; it may move.

        Raises:
            PoolExhausted: there is no room; the block is as it was.
            WrongFree: the block is not a live block of this pool.
            ValueError: the size is negative.
        """
        _check_size(size_bytes)
        handle = self.handle
        old = self._address_of(block)
        address = ffi.NULL
        if size_bytes <= _SIZE_BYTES_MAX:
            address = lib.mass_pool_reallocate(handle, old, size_bytes)
        if address == ffi.NULL:
            raise self._refusal(size_bytes, ALIGNMENT_BYTES)
        block._address = _keeping(address, handle)
        block.size_bytes = size_bytes

    def free(self, block: Block) -> None:
        """Give the block back.

        Raises:
            WrongFree: it is not a live block of this pool; freed before, or another pool's.
        """
        code = lib.mass_pool_free(self.handle, self._address_of(block))
        if code != lib.MASS_POOL_OK:
            raise error_for(code, f"a block of {block.size_bytes} bytes")
        block._address = None

    def reset(self) -> None:
        """Free all blocks at once; every Block handed out so far becomes a wrong one."""
        lib.mass_pool_reset(self.handle)
        self._reset_count += 1

    def statistics(self) -> PoolStatistics:
        """Return the figures of this moment, all from one instant."""
        out = ffi.new("mass_pool_statistics_t *")
        lib.mass_pool_statistics(self.handle, out)
        return PoolStatistics(
            capacity_bytes=out.capacity_bytes,
            used_bytes=out.used_bytes,
            used_peak_bytes=out.used_peak_bytes,
            largest_free_bytes=out.largest_free_bytes,
            live_count=out.live_count,
            allocation_count=out.allocation_count,
            reallocation_count=out.reallocation_count,
            free_count=out.free_count,
            failure_count=out.failure_count,
            wrong_free_count=out.wrong_free_count,
            damage_count=out.damage_count,
        )

    def check(self) -> None:
        """Walk all blocks and lists. Cost: linear in the blocks and in the pool's state.

        Raises:
            PoolUnsound: something is damaged.
        """
        code = lib.mass_pool_check(self.handle)
        if code != lib.MASS_POOL_OK:
            raise error_for(code, "the memory pool")

    def _address_of(self, block: Block) -> Any:
        address = block._live_address()
        if block._reset_count != self._reset_count:
            raise WrongFree(f"a block of {block.size_bytes} bytes: the pool was reset since")
        return address

    def _refusal(self, size_bytes: int, alignment_bytes: int) -> PoolError:
        """Why the C side returned NULL to this thread just now."""
        if alignment_bytes <= 0 or alignment_bytes & (alignment_bytes - 1):
            return PoolError(f"an alignment of {alignment_bytes} bytes: it is not a power of two")
        code = lib.mass_pool_last_error(self.handle)
        now = self.statistics()
        if code in _KINDS and size_bytes <= _SIZE_BYTES_MAX:
            return error_for(code, "a block")
        place = f" at a multiple of {alignment_bytes}" if alignment_bytes > ALIGNMENT_BYTES else ""
        return PoolExhausted(
            f"a block of {size_bytes} bytes{place}: {now.used_bytes} of {now.capacity_bytes} bytes "
            f"are used, the largest free block has {now.largest_free_bytes}"
        )


def _check_size(size_bytes: int) -> None:
    if size_bytes < 0:
        raise ValueError(f"a block of {size_bytes} bytes: the size must not be negative")


def _keeping(address: Any, handle: Any) -> Any:
    """Return the address as an object that keeps the C pool, and so its memory, from ending."""
    return ffi.gc(address, lambda _: handle)

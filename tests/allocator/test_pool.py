"""The Python face of the pool: blocks and their views, errors by name, and who keeps what alive."""

from __future__ import annotations

import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.native import ROOT

import allocator
from allocator.pool import (
    POOL_BYTES_MAX,
    POOL_BYTES_MIN,
    Pool,
    PoolError,
    PoolExhausted,
    PoolUnsound,
    WrongFree,
    error_for,
    lib,
)

MIB = 1 << 20


def test_block_is_aligned_and_its_view_is_writable() -> None:
    with Pool(MIB) as pool:
        block = pool.allocate(100)
        block.view()[:] = bytes(range(100))
        assert block.address % 16 == 0
        assert len(block.view()) == block.size_bytes == 100
        assert bytes(block.view()) == bytes(range(100))


@pytest.mark.parametrize("alignment_bytes", [1, 16, 64, 4096, 65536])
def test_block_starts_at_a_multiple_of_its_alignment(alignment_bytes: int) -> None:
    with Pool(MIB) as pool:
        pool.allocate(1)
        assert pool.allocate(100, alignment_bytes).address % alignment_bytes == 0
        pool.check()


def test_reallocate_keeps_the_content_up_to_the_smaller_size() -> None:
    with Pool(MIB) as pool:
        block, _neighbour = pool.allocate(64), pool.allocate(64)
        block.view()[:] = b"x" * 64
        pool.reallocate(block, 5000)
        assert bytes(block.view()[:64]) == b"x" * 64
        pool.reallocate(block, 10)
        assert bytes(block.view()) == b"x" * 10


def test_size_zero_is_the_smallest_block() -> None:
    with Pool(MIB) as pool:
        block = pool.allocate(0)
        assert pool.statistics().used_bytes == 16
        assert len(block.view()) == 0
        pool.free(block)


def test_full_pool_names_what_was_asked_and_what_is_left() -> None:
    with Pool(POOL_BYTES_MIN) as pool:
        capacity_bytes = pool.statistics().capacity_bytes
        block = pool.allocate(capacity_bytes - 64)
        block.view()[:3] = b"abc"
        expected = (
            f"no room for a block of 100 bytes: {capacity_bytes - 64} of {capacity_bytes} bytes "
            "are used, the largest free block has 64"
        )
        with pytest.raises(PoolExhausted, match=expected):
            pool.allocate(100)
        with pytest.raises(PoolExhausted):
            pool.reallocate(block, capacity_bytes + 1)
        assert bytes(block.view()[:3]) == b"abc"
        assert pool.statistics().failure_count == 2


@pytest.mark.parametrize("size_bytes", [2**40, 2**63, 2**64 - 1, 2**64, 2**100])
def test_sizes_beyond_any_pool_are_exhaustion(size_bytes: int) -> None:
    with Pool(MIB) as pool:
        block = pool.allocate(10)
        with pytest.raises(PoolExhausted, match=str(size_bytes)):
            pool.allocate(size_bytes)
        with pytest.raises(PoolExhausted, match=str(size_bytes)):
            pool.reallocate(block, size_bytes)
        pool.free(block)


def test_alignment_beyond_the_pool_is_exhaustion() -> None:
    with Pool(MIB) as pool:
        for alignment_bytes in (2 * MIB, 2**63, 2**70):
            with pytest.raises(PoolExhausted, match=f"multiple of {alignment_bytes}"):
                pool.allocate(10, alignment_bytes)


def test_negative_size_is_refused_by_value() -> None:
    with Pool(MIB) as pool:
        block = pool.allocate(10)
        with pytest.raises(ValueError, match="-1 bytes"):
            pool.allocate(-1)
        with pytest.raises(ValueError, match="-1 bytes"):
            pool.reallocate(block, -1)


@pytest.mark.parametrize("alignment_bytes", [-16, 0, 24, 2**70 + 1])
def test_alignment_that_is_none_is_refused_by_value(alignment_bytes: int) -> None:
    with Pool(MIB) as pool, pytest.raises(PoolError, match=str(alignment_bytes)):
        pool.allocate(10, alignment_bytes)


@pytest.mark.parametrize("size_bytes", [-1, 0, POOL_BYTES_MIN - 1, POOL_BYTES_MAX + 1])
def test_pool_size_out_of_bounds_names_the_bounds(size_bytes: int) -> None:
    expected = f"{size_bytes} bytes: .* {POOL_BYTES_MIN} and {POOL_BYTES_MAX}"
    with pytest.raises(PoolError, match=expected):
        Pool(size_bytes)


def test_freed_block_is_a_wrong_one_for_every_call() -> None:
    with Pool(MIB) as pool:
        block = pool.allocate(100)
        pool.free(block)
        again = pool.allocate(100)  # lies where the first one lay
        with pytest.raises(WrongFree, match="100 bytes: it was freed"):
            pool.free(block)
        with pytest.raises(WrongFree):
            pool.reallocate(block, 200)
        with pytest.raises(WrongFree):
            block.view()
        pool.free(again)


def test_block_of_another_pool_is_refused_and_counted() -> None:
    with Pool(MIB) as pool, Pool(MIB) as other:
        block = other.allocate(100)
        with pytest.raises(WrongFree, match="does not belong to the pool"):
            pool.free(block)
        with pytest.raises(WrongFree, match="does not belong to the pool"):
            pool.reallocate(block, 200)
        assert pool.statistics().wrong_free_count == 2
        other.free(block)


def test_reset_frees_all_and_makes_old_blocks_wrong() -> None:
    with Pool(MIB) as pool:
        old = pool.allocate(100)
        pool.reset()
        pool.allocate(100)
        with pytest.raises(WrongFree, match="the pool was reset"):
            pool.free(old)
        statistics = pool.statistics()
        assert (statistics.live_count, statistics.used_bytes) == (1, 112)


def test_statistics_count_what_happened() -> None:
    with Pool(MIB) as pool:
        first, second = pool.allocate(100), pool.allocate(1000)
        pool.reallocate(first, 50)
        pool.free(second)
        with pytest.raises(PoolExhausted):
            pool.allocate(2 * MIB)
        now = pool.statistics()
        assert now.used_bytes == 64
        assert now.used_peak_bytes == 112 + 1008
        assert now.live_count == 1
        assert (now.allocation_count, now.reallocation_count, now.free_count) == (2, 1, 1)
        assert (now.failure_count, now.wrong_free_count, now.damage_count) == (1, 0, 0)
        assert 0.97 * MIB < now.capacity_bytes < MIB
        assert now.largest_free_bytes == now.capacity_bytes - 64


def test_check_finds_freed_memory_that_was_written_to() -> None:
    with Pool(MIB) as pool:
        block, _keeper = pool.allocate(64), pool.allocate(64)
        view = block.view()
        pool.free(block)
        pool.check()
        view[:8] = b"AAAAAAAA"
        with pytest.raises(PoolUnsound, match="freed memory was written to"):
            pool.check()
        pool.allocate(64)  # finds the damage and makes the lists anew
        pool.check()
        assert pool.statistics().damage_count == 1


def test_view_keeps_the_memory_when_pool_and_block_are_gone() -> None:
    pool = Pool(MIB)
    view = pool.allocate(100).view()
    view[:] = b"y" * 100
    pool.close()
    del pool
    gc.collect()
    assert bytes(view) == b"y" * 100


def test_closed_pool_refuses_every_call() -> None:
    pool = Pool(MIB)
    pool.close()
    pool.close()
    with pytest.raises(PoolError, match="the memory pool was closed"):
        pool.allocate(1)
    with pytest.raises(PoolError, match="closed"):
        pool.statistics()


def test_unknown_code_is_still_a_pool_error() -> None:
    assert str(error_for(99, "a block")) == "a block: unknown error"
    assert type(error_for(lib.MASS_POOL_E_EXHAUSTED, "a row")) is PoolExhausted


def test_threads_of_python_share_a_pool() -> None:
    def live(seed: int) -> int:
        kept = []
        for step in range(400):
            block = pool.allocate(16 + (seed * 131 + step * 17) % 500)
            block.view()[:] = bytes([seed]) * block.size_bytes
            kept.append(block)
            if step % 3 == 0:
                oldest = kept.pop(0)
                assert bytes(oldest.view()) == bytes([seed]) * oldest.size_bytes
                pool.free(oldest)
        for block in kept:
            assert bytes(block.view()) == bytes([seed]) * block.size_bytes
            pool.free(block)
        return len(kept)

    with Pool(4 * MIB) as pool:
        with ThreadPoolExecutor(8) as threads:
            assert sum(threads.map(live, range(1, 9))) == 8 * 266
        pool.check()
        assert pool.statistics().live_count == 0


def test_package_imports_nothing_before_a_name_is_asked_for() -> None:
    code = (
        "import sys, allocator, allocator.launcher\n"
        "assert not {'cffi', '_cffi_backend', 'numpy', 'allocator.pool'} & set(sys.modules)\n"
        "allocator.Pool(1 << 20).check()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_package_hands_out_its_names_and_no_others() -> None:
    assert allocator.Pool is Pool
    assert allocator.PoolExhausted is PoolExhausted
    assert all(hasattr(allocator, name) for name in allocator.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = allocator.nonsense

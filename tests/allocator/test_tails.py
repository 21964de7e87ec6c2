"""Output tails: the last 64 KiB of a stream, and room given back when others need it more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.pool import Pool, PoolExhausted
from allocator.tails import TAIL_BYTES_MAX, TAIL_BYTES_MIN, TailKey, Tails, TailsFull

KEY = TailKey(task_id=7, attempt=1, stream="stdout")
OTHER = TailKey(task_id=7, attempt=1, stream="stderr")


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(4 << 20) as pool:
        yield pool


def used_bytes(pool: Pool) -> int:
    return pool.statistics().used_bytes


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(
        st.one_of(
            st.integers(0, 200),
            st.integers(0, 20_000),
            st.sampled_from([1023, 1024, 1025, 65_535, 65_536, 65_537, 200_000]),
        ),
        max_size=30,
    )
)
def test_a_tail_is_the_end_of_all_that_was_appended(sizes: list[int]) -> None:
    with Pool(1 << 18) as pool:
        tails = Tails(pool, 2)
        everything = b""
        for number, size in enumerate(sizes):
            pattern = bytes((number * 7 + i) % 251 for i in range(251))
            output = (pattern * (size // 251 + 1))[:size]
            everything += output
            tails.append(KEY, output)
            assert tails.read(KEY) == everything[-TAIL_BYTES_MAX:]
            assert tails.bytes_used() == used_bytes(pool)
        tails.drop(KEY)
        assert used_bytes(pool) == 0


def test_a_tail_takes_room_as_it_grows_and_never_more_than_its_bound(pool: Pool) -> None:
    tails = Tails(pool, 2)
    taken = []
    for _ in range(100):
        tails.append(KEY, b"x" * 1000)
        taken.append(tails.bytes_used())
    assert taken[0] == TAIL_BYTES_MIN
    assert sorted(set(taken)) == [1024 << power for power in range(7)]
    assert taken[-1] == TAIL_BYTES_MAX


def test_a_tail_that_fits_its_block_exactly_takes_no_larger_one(pool: Pool) -> None:
    tails = Tails(pool, 1)
    tails.append(KEY, b"a" * 1000)
    tails.append(KEY, b"b" * 24)
    assert tails.bytes_used() == TAIL_BYTES_MIN
    assert tails.read(KEY) == b"a" * 1000 + b"b" * 24


def test_streams_have_tails_of_their_own(pool: Pool) -> None:
    tails = Tails(pool, 2)
    tails.append(KEY, b"out")
    tails.append(OTHER, b"err")
    tails.append(KEY, b"put")
    assert tails.read(KEY) == b"output"
    assert tails.read(OTHER) == b"err"
    tails.drop(KEY)
    assert tails.read(KEY) == b""
    assert tails.read(OTHER) == b"err"


def test_nothing_appended_takes_nothing(pool: Pool) -> None:
    tails = Tails(pool, 1)
    tails.append(KEY, b"")
    tails.drop(OTHER)
    assert len(tails) == 0
    assert tails.read(KEY) == b""
    assert used_bytes(pool) == 0


def test_the_number_of_tails_is_bounded(pool: Pool) -> None:
    tails = Tails(pool, 1)
    tails.append(KEY, b"one")
    with pytest.raises(TailsFull, match="1 output tails"):
        tails.append(OTHER, b"two")
    tails.append(KEY, b"more")
    tails.drop(KEY)
    tails.append(OTHER, b"two")
    with pytest.raises(ValueError, match="tails_max is 0"):
        Tails(pool, 0)


def test_a_full_pool_leaves_the_tail_as_it_was() -> None:
    with Pool(1 << 16) as pool:
        tails = Tails(pool, 10)
        tails.append(KEY, b"a" * 1000)
        filler = pool.allocate(pool.statistics().largest_free_bytes)
        used = used_bytes(pool)
        with pytest.raises(PoolExhausted, match="an output tail of 65536 bytes"):
            tails.append(KEY, b"b" * 60_000)
        with pytest.raises(PoolExhausted, match="an output tail of 32768 bytes"):
            tails.append(OTHER, b"c" * 20_000)
        assert tails.read(KEY) == b"a" * 1000
        assert tails.read(OTHER) == b""
        assert len(tails) == 1
        assert used_bytes(pool) == used
        tails.append(KEY, b"d" * 24)
        assert tails.read(KEY)[-24:] == b"d" * 24
        pool.free(filler)


def test_a_stop_gives_everything_back_and_counts_what_comes(pool: Pool) -> None:
    tails = Tails(pool, 10)
    tails.append(KEY, b"a" * 5000)
    tails.append(OTHER, b"b" * 100)
    tails.stop()
    assert tails.is_stopped
    assert used_bytes(pool) == tails.bytes_used() == 0
    tails.append(KEY, b"c" * 300)
    assert tails.read(KEY) == b""
    assert tails.dropped_bytes == 300
    tails.resume()
    tails.append(KEY, b"new")
    assert tails.read(KEY) == b"new"
    assert tails.dropped_bytes == 300

"""Slots, columns, room: everything of a series but the arithmetic of its windows."""

from __future__ import annotations

import gc
import math
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from allocator.pool import Pool, PoolExhausted
from allocator.series import (
    LEVELS_MAX,
    WINDOW_NS_MAX,
    NodesFull,
    Series,
    UnknownSlot,
    WindowFunction,
    series_bytes,
)

SECOND_NS = 1_000_000_000
START_NS = 1_700_000_000 * SECOND_NS
ROOT = Path(__file__).parents[2]


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(64 << 20) as pool:
        yield pool


def used_bytes(pool: Pool) -> int:
    return pool.statistics().used_bytes


def record(series: Series, slot: int, at_ns: int, *values: float) -> bool:
    series.clear_values()
    for place, value in enumerate(values):
        series.values[place] = value
    return series.record(slot, at_ns)


def add_until_full(series: Series) -> list[int]:
    """Add nodes until the pool refuses one; return the slots of the others."""
    slots = []
    while True:
        try:
            slots.append(series.add_node())
        except PoolExhausted:
            return slots


def ask(series: Series, function: WindowFunction, metric: str, now_ns: int, slot: int) -> float:
    slots = np.array([slot], dtype=np.int32)
    return float(series.window(function, metric, 60 * SECOND_NS, now_ns, slots)[0])


def test_latest_shows_the_newest_values_and_nan_where_there_is_none(pool: Pool) -> None:
    with Series(pool, ["used", "load"], ["used"], 8) as series:
        first, second, third = (series.add_node() for _ in range(3))
        record(series, first, START_NS, 5.0, 0.5)
        record(series, first, START_NS + 1, 6.0)
        record(series, second, START_NS, 7.0, 0.7)
        np.testing.assert_array_equal(series.latest("used"), [6.0, 7.0, math.nan])
        np.testing.assert_array_equal(series.latest("load"), [math.nan, 0.7, math.nan])
        np.testing.assert_array_equal(series.times(), [START_NS + 1, START_NS, 0])
        series.remove_node(second)
        series.remove_node(third)
        np.testing.assert_array_equal(series.latest("used"), [6.0, math.nan, math.nan])


def test_a_column_of_one_chunk_is_a_view_that_cannot_be_written(pool: Pool) -> None:
    with Series(pool, ["used"], [], 1024) as series:
        slot = series.add_node()
        column = series.latest("used")
        record(series, slot, START_NS, 3.0)
        assert column[slot] == 3.0
        with pytest.raises(ValueError, match="read-only"):
            column[slot] = 1.0
        del column


def test_a_series_without_nodes_has_empty_columns(pool: Pool) -> None:
    with Series(pool, ["used"], ["used"], 4) as series:
        assert series.latest("used").size == 0
        assert series.times().size == 0
        assert series.chunks("used") == []
        assert series.window(WindowFunction.AVG, "used", 1, START_NS).size == 0


def test_chunks_stay_where_they_are_while_nodes_are_added(pool: Pool) -> None:
    with Series(pool, ["a", "b"], [], 2100) as series:
        slots = [series.add_node() for _ in range(1000)]
        before = series.chunks("b")[0]
        slots += [series.add_node() for _ in range(1100)]
        assert slots == list(range(2100))
        for slot in slots:
            record(series, slot, START_NS + slot, slot, -slot)
        assert [len(part) for part in series.chunks("b")] == [1024, 1024, 52]
        np.testing.assert_array_equal(series.latest("b"), -np.arange(2100.0))
        np.testing.assert_array_equal(series.times(), START_NS + np.arange(2100))
        np.testing.assert_array_equal(before, -np.arange(1000.0))
        series.check()
        del before


def test_a_slot_used_again_starts_without_values_and_history(pool: Pool) -> None:
    with Series(pool, ["used"], ["used"], 2) as series:
        slot = series.add_node()
        record(series, slot, START_NS, 9.0)
        series.remove_node(slot)
        assert series.add_node() == slot
        assert math.isnan(series.latest("used")[slot])
        assert math.isnan(ask(series, WindowFunction.MAX, "used", START_NS, slot))
        assert record(series, slot, START_NS - SECOND_NS, 1.0)
        assert ask(series, WindowFunction.MAX, "used", START_NS, slot) == 1.0
        series.check()


def test_a_sample_older_than_the_newest_is_ignored_and_counted(pool: Pool) -> None:
    with Series(pool, ["used"], ["used"], 2) as series:
        slot = series.add_node()
        assert record(series, slot, START_NS, 5.0)
        assert not record(series, slot, START_NS - 1, 100.0)
        assert series.statistics().stale_count == 1
        assert series.latest("used")[slot] == 5.0
        assert ask(series, WindowFunction.MAX, "used", START_NS, slot) == 5.0


def test_of_two_samples_at_one_instant_the_later_call_counts(pool: Pool) -> None:
    with Series(pool, ["used"], ["used"], 2) as series:
        slot = series.add_node()
        record(series, slot, START_NS, 50.0)
        assert record(series, slot, START_NS, 5.0)
        assert series.latest("used")[slot] == 5.0
        now_ns = START_NS + SECOND_NS
        assert ask(series, WindowFunction.MAX, "used", now_ns, slot) == 5.0
        series.check()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e31, -1e31])
def test_what_is_no_value_shows_as_missing_and_lets_the_value_before_hold(
    pool: Pool, value: float
) -> None:
    with Series(pool, ["used"], ["used"], 2) as series:
        slot = series.add_node()
        record(series, slot, START_NS, 5.0)
        record(series, slot, START_NS + SECOND_NS, value)
        assert math.isnan(series.latest("used")[slot])
        now_ns = START_NS + 2 * SECOND_NS
        assert ask(series, WindowFunction.LAST, "used", now_ns, slot) == 5.0


@pytest.mark.parametrize(
    ("metrics", "history", "nodes_max", "hold_ns", "message"),
    [
        ([], [], 1, 1, "0 metrics"),
        ([str(i) for i in range(65)], [], 1, 1, "65 metrics"),
        (["a", "a"], [], 1, 1, "named twice"),
        (["a"], ["b"], 1, 1, "history of b"),
        (["a"], [], 0, 1, "nodes_max is 0"),
        (["a"], [], 1_048_577, 1, "nodes_max is 1048577"),
        (["a"], [], 1, 0, "hold_ns is 0"),
        (["a"], [], 1, 600 * SECOND_NS + 1, "hold_ns is 600000000001"),
    ],
)
def test_a_series_out_of_bounds_is_refused(
    pool: Pool, metrics: list[str], history: list[str], nodes_max: int, hold_ns: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Series(pool, metrics, history, nodes_max, hold_ns)
    assert used_bytes(pool) == 0


def test_sixty_four_metrics_with_history_are_kept(pool: Pool) -> None:
    names = [f"m{i}" for i in range(64)]
    with Series(pool, names, names, 3) as series:
        slot = series.add_node()
        record(series, slot, START_NS, *range(64))
        assert ask(series, WindowFunction.LAST, "m63", START_NS, slot) == 63.0
        series.check()


def test_calls_out_of_bounds_are_refused_by_name(pool: Pool) -> None:
    with Series(pool, ["used"], ["used"], 1) as series:
        with pytest.raises(UnknownSlot, match="slot 0"):
            series.record(0, START_NS)
        slot = series.add_node()
        with pytest.raises(NodesFull, match="all 1 slots"):
            series.add_node()
        for wrong in (-1, 1, 1 << 30):
            with pytest.raises(UnknownSlot, match=f"slot {wrong}"):
                series.record(wrong, START_NS)
            with pytest.raises(UnknownSlot, match=f"slot {wrong}"):
                series.remove_node(wrong)
        for at_ns in (0, -5, (1 << 62) + 1):
            with pytest.raises(ValueError, match="at_ns"):
                series.record(slot, at_ns)
        with pytest.raises(ValueError, match="2 values for 1 metrics"):
            series.record(slot, START_NS, [1.0, 2.0])
        with pytest.raises(KeyError):
            series.latest("load")
        series.remove_node(slot)
        with pytest.raises(UnknownSlot, match="slot 0"):
            series.remove_node(slot)


def test_a_window_out_of_bounds_is_refused(pool: Pool) -> None:
    with Series(pool, ["used"], ["used"], 4) as series:
        series.add_node()
        for window_ns in (0, -1, WINDOW_NS_MAX + 1):
            with pytest.raises(ValueError, match="window_ns"):
                series.window(WindowFunction.AVG, "used", window_ns, START_NS)
        with pytest.raises(ValueError, match="out has 3 places for 1"):
            series.window(WindowFunction.AVG, "used", 1, START_NS, out=np.empty(3))
        for slot in (-1, 1):
            with pytest.raises(UnknownSlot):
                series.window(
                    WindowFunction.AVG, "used", 1, START_NS, np.array([slot], dtype=np.int32)
                )


def test_the_longest_window_is_taken(pool: Pool) -> None:
    with Series(pool, ["used"], ["used"], 4) as series:
        slot = series.add_node()
        record(series, slot, START_NS, 4.0)
        assert series.window(WindowFunction.AVG, "used", WINDOW_NS_MAX, START_NS)[slot] == 4.0


def test_a_closed_series_refuses_calls_instead_of_crashing(pool: Pool) -> None:
    series = Series(pool, ["used"], ["used"], 4)
    slot = series.add_node()
    series.close()
    series.close()
    with pytest.raises(TypeError):
        series.record(slot, START_NS)
    assert used_bytes(pool) == 0


def test_bytes_used_is_what_the_pool_counts(pool: Pool) -> None:
    series = Series(pool, ["a", "b"], ["b"], 3000)
    for _ in range(1500):
        series.add_node()
        assert series.bytes_used() == used_bytes(pool)
    series.remove_node(7)
    assert series.bytes_used() == used_bytes(pool)
    for level in range(1, LEVELS_MAX + 1):
        before = series.bytes_used()
        freed = series.shorten()
        assert freed > 0
        assert series.level == level
        assert series.bytes_used() == before - freed == used_bytes(pool)
    assert series.shorten() == 0
    assert series.lengthen()
    assert series.bytes_used() == used_bytes(pool)
    series.close()
    assert used_bytes(pool) == 0


@pytest.mark.parametrize(
    ("metric_count", "history_count", "nodes_max"),
    [(1, 0, 1), (3, 2, 7), (20, 20, 100), (5, 1, 1024), (5, 1, 2100)],
)
def test_the_foretold_size_is_what_a_full_series_takes(
    pool: Pool, metric_count: int, history_count: int, nodes_max: int
) -> None:
    names = [str(place) for place in range(metric_count)]
    with Series(pool, names, names[:history_count], nodes_max) as series:
        for _ in range(nodes_max):
            series.add_node()
        assert series_bytes(metric_count, history_count, nodes_max) == used_bytes(pool)
    with pytest.raises(ValueError, match="history of 2 metrics out of 1"):
        series_bytes(1, 2, nodes_max)


def test_a_full_pool_refuses_a_node_until_histories_are_shortened() -> None:
    with Pool(1 << 20) as pool, Series(pool, ["a", "b"], ["a", "b"], 5000) as series:
        slots = add_until_full(series)
        used = used_bytes(pool)
        with pytest.raises(PoolExhausted):
            series.add_node()
        assert used_bytes(pool) == used
        for slot in slots:
            assert record(series, slot, START_NS, 1.0, 2.0)
        series.check()
        assert series.shorten() > 0
        assert series.add_node() == len(slots)
        np.testing.assert_array_equal(series.latest("b")[:-1], 2.0)
        series.check()


def test_a_chunk_without_room_for_its_first_history_is_given_back() -> None:
    metrics = [f"m{i}" for i in range(8)]
    with Pool(1 << 20) as pool, Series(pool, metrics, metrics, 1024) as series:
        fixed = series.bytes_used()
        filler = [pool.allocate(1000) for _ in range((1 << 20) // 1008 - fixed // 1008 - 110)]
        with pytest.raises(PoolExhausted):
            series.add_node()
        assert series.bytes_used() == fixed
        assert filler
        for block in filler:
            pool.free(block)
        assert series.add_node() == 0
        series.check()


def test_histories_grow_all_or_none() -> None:
    with Pool(1 << 20) as pool, Series(pool, ["a"], ["a"], 5000) as series:
        series.shorten()
        slots = add_until_full(series)
        for slot in slots:
            for second in range(40):
                record(series, slot, START_NS + second * SECOND_NS, slot + second)
        for slot in slots[-6:]:  # room for a few to grow, not for all
            series.remove_node(slot)
        now_ns = START_NS + 39 * SECOND_NS
        before = series.window(WindowFunction.MIN, "a", 20 * SECOND_NS, now_ns)
        used, moves = used_bytes(pool), pool.statistics().reallocation_count
        assert not series.lengthen()
        assert pool.statistics().reallocation_count > moves
        assert series.level == 1
        assert used_bytes(pool) == used
        after = series.window(WindowFunction.MIN, "a", 20 * SECOND_NS, now_ns)
        np.testing.assert_array_equal(before, after)
        series.check()
        for slot in slots[: 2 * len(slots) // 3]:
            series.remove_node(slot)
        assert series.lengthen()
        assert series.level == 0
        series.check()


def test_without_histories_the_latest_value_still_answers(pool: Pool) -> None:
    with Series(pool, ["kept", "bare"], ["kept"], 4) as series:
        slot = series.add_node()
        record(series, slot, START_NS, 4.0, 8.0)
        record(series, slot, START_NS + SECOND_NS, 5.0, 9.0)
        now_ns = START_NS + 2 * SECOND_NS
        while series.level < LEVELS_MAX:
            series.shorten()
        for metric, value in (("kept", 5.0), ("bare", 9.0)):
            for function in WindowFunction:
                answer = ask(series, function, metric, now_ns, slot)
                if function in (WindowFunction.DELTA, WindowFunction.RATE):
                    assert math.isnan(answer)
                else:
                    assert answer == value
                later_ns = START_NS + 31 * SECOND_NS
                assert math.isnan(ask(series, function, metric, later_ns, slot))
        series.check()


def test_a_hundred_thousand_samples_cost_no_memory(pool: Pool) -> None:
    metrics = [f"m{i}" for i in range(20)]
    with Series(pool, metrics, metrics, 16) as series:
        slots = [series.add_node() for _ in range(16)]

        def run(first: int, count: int) -> None:
            for number in range(first, first + count):
                series.values[number % 20] = number
                series.record(slots[number % 16], START_NS + number * 100_000_000)

        run(0, 1000)
        gc.collect()
        used, objects = used_bytes(pool), sys.getallocatedblocks()
        run(1000, 100_000)
        gc.collect()
        assert used_bytes(pool) == used
        assert abs(sys.getallocatedblocks() - objects) < 50
        series.check()


def test_threads_may_record_ask_and_come_and_go_at_once(pool: Pool) -> None:
    metrics = ["a", "b", "c"]
    with Series(pool, metrics, metrics, 64) as series:
        fixed = [series.add_node() for _ in range(4)]
        failures: list[BaseException] = []

        def work(slot: int) -> None:
            try:
                values = series.new_values()
                for number in range(3000):
                    values[0] = slot
                    series.record(slot, START_NS + number * SECOND_NS, values)
                    if number % 50 == 0:
                        other = series.add_node()
                        series.remove_node(other)
                        only = np.array([slot], dtype=np.int32)
                        answer = series.window(
                            WindowFunction.AVG, "a", 300 * SECOND_NS, START_NS, only
                        )
                        assert answer[0] == slot
                    if number % 1000 == 500:
                        series.shorten()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(slot,)) for slot in fixed]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        series.check()


@pytest.mark.parametrize("seed", range(8))
def test_a_random_life_agrees_with_a_model_and_keeps_every_invariant(seed: int) -> None:
    rng = random.Random(seed)
    with Pool(1 << 18) as pool, Series(pool, ["a", "b"], ["b"], 60) as series:
        newest: dict[int, tuple[int, float]] = {}
        now_ns = START_NS
        for _ in range(400):
            now_ns += rng.randrange(1, 20 * SECOND_NS)
            choice = rng.random()
            if choice < 0.25:
                try:
                    slot = series.add_node()
                    assert slot not in newest
                    newest[slot] = (0, math.nan)
                except PoolExhausted:
                    series.shorten()
                except NodesFull:
                    assert len(newest) == 60
            elif choice < 0.35 and newest:
                slot = rng.choice(sorted(newest))
                series.remove_node(slot)
                del newest[slot]
            elif choice < 0.95 and newest:
                slot = rng.choice(sorted(newest))
                value = rng.random()
                record(series, slot, now_ns, 1.0, value)
                newest[slot] = (now_ns, value)
            else:
                series.lengthen()
            series.check()
            assert series.bytes_used() == used_bytes(pool)
            column, times = series.latest("b"), series.times()
            for slot in range(len(column)):
                at_ns, value = newest.get(slot, (0, math.nan))
                assert times[slot] == at_ns
                assert column[slot] == value or (math.isnan(value) and math.isnan(column[slot]))
            del column, times


def test_the_c_code_runs_clean_under_the_sanitizers(tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc")
    driver = tmp_path / "driver"
    sources = ["history.c", "series.c", "ledger.c"]
    build = subprocess.run(
        [
            compiler,
            "-std=c11",
            "-g",
            "-O1",
            "-Wall",
            "-Wextra",
            "-Wconversion",
            "-pedantic",
            "-Werror",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
            f"-I{ROOT / 'allocator'}",
            str(ROOT / "tests/allocator/series_driver.c"),
            *(str(ROOT / "allocator" / name) for name in sources),
            "-o",
            str(driver),
            "-lpthread",
            "-lm",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot find" in build.stderr and "san" in build.stderr:
        pytest.skip("the sanitizers' runtime is not installed")
    assert build.returncode == 0, build.stderr
    for seed in range(4):
        run = subprocess.run(
            [str(driver), str(seed), "40000"], capture_output=True, text=True, check=False
        )
        assert run.stdout == "ok\n", run.stderr

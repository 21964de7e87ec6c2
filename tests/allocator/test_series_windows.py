"""The arithmetic of windows, against a model that knows nothing of rings and rows.

The model is the definition: f(t) is the value of the newest sample at or before t that reported
the metric, for hold_ns after it. Where the raw samples reach back to the window's start the
answer must be exact; where rows are used it must be the exact answer for a window whose start
moved back to the start of its row, up to the rounding of a float.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.pool import Pool
from allocator.series import LEVELS_MAX, Series, WindowFunction

MS = 1_000_000
SECOND_NS = 1000 * MS
START_NS = 1_700_000_000 * SECOND_NS
HOLD_NS = 30 * SECOND_NS
SHORT_NS, LONG_NS = 10 * SECOND_NS, 60 * SECOND_NS

Sample = tuple[int, float]


@dataclass(frozen=True, slots=True)
class Answer:
    avg: float
    min: float
    max: float
    last: float
    delta: float
    rate: float


NO_DATA = Answer(*[math.nan] * 6)


def model(samples: list[Sample], start_ns: int, now_ns: int) -> Answer:
    """Answer all six functions by walking over every sample ever taken."""
    known = [(at_ns, value) for at_ns, value in samples if not math.isnan(value)]
    if not known or now_ns - known[-1][0] >= HOLD_NS:
        return NO_DATA
    last = known[-1][1]
    pieces = [(now_ns, now_ns, last)]
    ends = [at_ns for at_ns, _ in known[1:]] + [now_ns]
    for (at_ns, value), next_ns in zip(known, ends, strict=True):
        begin, end = max(at_ns, start_ns), min(next_ns, at_ns + HOLD_NS)
        if begin < end:
            pieces.append((begin, end, value))
    pieces.sort(key=lambda piece: piece[0])
    values = [value for _, _, value in pieces]
    covered_ns = sum(end - begin for begin, end, _ in pieces)
    total = math.fsum((end - begin) * value for begin, end, value in pieces)
    first_ns, _, first = pieces[0]
    elapsed_s = (now_ns - first_ns) / 1e9
    return Answer(
        avg=total / covered_ns if covered_ns else last,
        min=min(values),
        max=max(values),
        last=last,
        delta=last - first,
        rate=(last - first) / elapsed_s if elapsed_s else math.nan,
    )


def ask(series: Series, slot: int, window_ns: int, now_ns: int) -> Answer:
    slots = np.array([slot], dtype=np.int32)
    return Answer(
        *(
            float(series.window(function, "used", window_ns, now_ns, slots)[0])
            for function in WindowFunction
        )
    )


def near(one: Answer, other: Answer, slack: float) -> bool:
    """Compare value by value; a NaN equals a NaN only."""
    for name in ("avg", "min", "max", "last", "delta", "rate"):
        a, b = getattr(one, name), getattr(other, name)
        if math.isnan(a) != math.isnan(b) or abs(a - b) > slack:
            return False
    return True


def slack_of(samples: list[Sample]) -> float:
    """Return what rounding to a float may cost in a difference of two values."""
    return 2.0**-22 * max((abs(v) for _, v in samples if not math.isnan(v)), default=0.0)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(16 << 20) as pool:
        yield pool


# Values are bytes up to 2^53 or percents; times are whole milliseconds, so that no rounding of the
# covered time hides an error.
VALUES = st.one_of(
    st.integers(0, 100).map(float),
    st.integers(0, 1 << 53).map(float),
    st.floats(-1e6, 1e6, width=32),
    st.just(math.nan),
)
GAPS_MS = st.one_of(
    st.integers(0, 3000),
    st.integers(900, 1100),
    st.sampled_from([1000, 5000, 10_000, 29_999, 30_000, 30_001, 60_000]),
    st.integers(0, 200_000),
    st.integers(0, 5_000_000),
)
RUNS = st.lists(
    st.tuples(GAPS_MS, st.integers(1, 60), st.lists(VALUES, min_size=1, max_size=5)),
    min_size=1,
    max_size=8,
)
WINDOWS_NS = st.one_of(
    st.integers(1, 3600 * 1000).map(lambda ms: ms * MS),
    st.sampled_from([s * SECOND_NS for s in (1, 10, 30, 60, 64, 300, 360, 361, 600, 3600)]),
)


def unfold(runs: list[tuple[int, int, list[float]]]) -> list[Sample]:
    """Turn runs of samples at equal distance into a list; of one instant only the last remains."""
    samples: dict[int, float] = {}
    at_ns = START_NS
    for gap_ms, count, values in runs:
        for number in range(count):
            at_ns += gap_ms * MS
            value = values[number % len(values)]
            if math.isnan(value) and at_ns in samples:
                continue  # a missing value at the same instant takes nothing away
            samples[at_ns] = value
    return sorted(samples.items())


@settings(max_examples=400, deadline=None)
@given(runs=RUNS, window_ns=WINDOWS_NS, idle_ms=st.integers(0, 31_000))
def test_a_window_is_what_the_model_says(
    pool: Pool, runs: list[tuple[int, int, list[float]]], window_ns: int, idle_ms: int
) -> None:
    samples = unfold(runs)
    with Series(pool, ["other", "used"], ["used"], 1) as series:
        slot = series.add_node()
        for at_ns, value in samples:
            series.values[1] = value
            assert series.record(slot, at_ns)
        series.check()
        now_ns = samples[-1][0] + idle_ms * MS
        start_ns = now_ns - window_ns
        answer = ask(series, slot, window_ns, now_ns)
        exact = model(samples, start_ns, now_ns)
        tiny = 1e-12 * slack_of(samples) * 2**22
        if len(samples) <= 64 or samples[-64][0] <= start_ns - HOLD_NS:
            assert near(answer, exact, tiny), (answer, exact)
            return
        grains_ns = [SHORT_NS] if window_ns <= 360 * SECOND_NS else [SHORT_NS, LONG_NS]
        wider = [model(samples, start_ns - start_ns % grain_ns, now_ns) for grain_ns in grains_ns]
        assert near(answer, exact, tiny) or any(
            near(answer, one, slack_of(samples)) for one in wider
        ), (answer, exact, wider)


@settings(max_examples=250, deadline=None)
@given(
    runs=RUNS,
    levels=st.lists(st.sampled_from(["shorten", "lengthen"]), min_size=1, max_size=4),
    window_ns=WINDOWS_NS,
)
def test_a_shortened_history_answers_over_what_is_left(
    pool: Pool, runs: list[tuple[int, int, list[float]]], levels: list[str], window_ns: int
) -> None:
    samples = unfold(runs)
    cuts = [len(samples) * (i + 1) // (len(levels) + 1) for i in range(len(levels))]
    with Series(pool, ["used"], ["used"], 1) as series:
        slot = series.add_node()
        for number, (at_ns, value) in enumerate(samples):
            for cut, step in zip(cuts, levels, strict=True):
                if cut == number:
                    if step == "shorten" and series.level < LEVELS_MAX - 1:
                        series.shorten()
                    elif step == "lengthen":
                        assert series.lengthen()
                    series.check()
            series.values[0] = value
            series.record(slot, at_ns)
        series.check()
        now_ns = samples[-1][0]
        start_ns = now_ns - window_ns
        answer = ask(series, slot, window_ns, now_ns)
        slack = slack_of(samples)
        # What is left begins at the window's start, or later: at some row or some sample.
        rows = range(start_ns - start_ns % LONG_NS, now_ns + SHORT_NS, SHORT_NS)
        starts = {start_ns, now_ns, *rows, *(at_ns for at_ns, _ in samples)}
        assert any(
            near(answer, model(samples, start, now_ns), slack)
            for start in starts
            if start >= start_ns - LONG_NS
        )


def fill(series: Series, slot: int, seconds: int) -> list[Sample]:
    """Record one rising value a second."""
    samples = [(START_NS + second * SECOND_NS, float(second)) for second in range(seconds)]
    for at_ns, value in samples:
        series.values[0] = value
        series.record(slot, at_ns)
    return samples


@pytest.mark.parametrize(
    ("level", "reach_s"), [(0, 360), (1, 180), (2, 90)], ids=["full", "half", "quarter"]
)
@pytest.mark.parametrize("grain", ["short", "long"])
def test_each_level_reaches_back_as_far_as_it_says(
    pool: Pool, level: int, reach_s: int, grain: str
) -> None:
    with Series(pool, ["used"], ["used"], 1) as series:
        slot = series.add_node()
        samples = fill(series, slot, 4000)
        for _ in range(level):
            series.shorten()
        now_ns = samples[-1][0]
        seconds, grain_ns = (reach_s, SHORT_NS) if grain == "short" else (10 * reach_s, LONG_NS)
        start_ns = now_ns - seconds * SECOND_NS
        expected = model(samples, start_ns - start_ns % grain_ns, now_ns)
        assert near(ask(series, slot, seconds * SECOND_NS, now_ns), expected, 1e-3)


@pytest.mark.parametrize(("level", "samples_kept"), [(0, 64), (1, 32), (2, 16)])
def test_each_level_is_exact_as_far_as_its_raw_samples_reach(
    pool: Pool, level: int, samples_kept: int
) -> None:
    with Series(pool, ["used"], ["used"], 1) as series:
        slot = series.add_node()
        samples = fill(series, slot, 777)
        for _ in range(level):
            series.shorten()
        now_ns = samples[-1][0] + SECOND_NS // 2
        window_ns = samples_kept * SECOND_NS - SECOND_NS // 2
        expected = model(samples, now_ns - window_ns, now_ns)
        assert near(ask(series, slot, window_ns, now_ns), expected, 1e-12)


def test_a_value_that_holds_longer_than_the_raw_samples_reach_is_found_in_the_rows(
    pool: Pool,
) -> None:
    with Series(pool, ["other", "used"], ["used"], 1) as series:
        slot = series.add_node()
        samples = [(START_NS, 10.0)]
        samples += [(START_NS + number * 200 * MS, math.nan) for number in range(1, 65)]
        samples += [(START_NS + 65 * 200 * MS, 50.0)]
        for at_ns, value in samples:
            series.values[1] = value
            series.record(slot, at_ns)
        now_ns = samples[-1][0]
        start_ns = now_ns - 5 * SECOND_NS
        expected = model(samples, start_ns - start_ns % SHORT_NS, now_ns)
        assert expected.min == 10.0
        assert near(ask(series, slot, 5 * SECOND_NS, now_ns), expected, 1e-6)


def test_a_longer_history_after_a_shorter_one_prefers_what_was_not_forgotten(pool: Pool) -> None:
    with Series(pool, ["used"], ["used"], 1) as series:
        slot = series.add_node()
        samples = fill(series, slot, 1000)
        series.shorten()
        assert series.lengthen()
        now_ns = samples[-1][0]
        # Ten-second rows of 18 rows remain, one-minute rows of 30: five minutes need the latter.
        start_ns = now_ns - 300 * SECOND_NS
        expected = model(samples, start_ns - start_ns % LONG_NS, now_ns)
        assert near(ask(series, slot, 300 * SECOND_NS, now_ns), expected, 1e-3)


def test_values_weigh_by_the_time_they_hold(pool: Pool) -> None:
    with Series(pool, ["used"], ["used"], 1) as series:
        slot = series.add_node()
        for second, value in ((0, 10.0), (9, 100.0)):
            series.values[0] = value
            series.record(slot, START_NS + second * SECOND_NS)
        answer = ask(series, slot, 60 * SECOND_NS, START_NS + 10 * SECOND_NS)
        assert answer == Answer(avg=19.0, min=10.0, max=100.0, last=100.0, delta=90.0, rate=9.0)


def test_a_silent_node_has_no_data_after_the_hold_whatever_was_before(pool: Pool) -> None:
    with Series(pool, ["used"], ["used"], 1) as series:
        slot = series.add_node()
        fill(series, slot, 100)
        last_ns = START_NS + 99 * SECOND_NS
        window_ns = 300 * SECOND_NS
        assert not math.isnan(ask(series, slot, window_ns, last_ns + HOLD_NS - 1).avg)
        silent = ask(series, slot, window_ns, last_ns + HOLD_NS)
        assert all(math.isnan(getattr(silent, name)) for name in ("avg", "max", "last", "rate"))


def test_a_gap_counts_as_no_data_beyond_the_hold(pool: Pool) -> None:
    with Series(pool, ["used"], ["used"], 1) as series:
        slot = series.add_node()
        for second, value in ((0, 10.0), (130, 40.0)):
            series.values[0] = value
            series.record(slot, START_NS + second * SECOND_NS)
        answer = ask(series, slot, 300 * SECOND_NS, START_NS + 140 * SECOND_NS)
        assert answer.avg == (30 * 10.0 + 10 * 40.0) / 40


def test_a_value_that_holds_from_before_the_window_counts_in_it(pool: Pool) -> None:
    with Series(pool, ["used"], ["used"], 1) as series:
        slot = series.add_node()
        for second, value in ((0, 10.0), (20, 40.0)):
            series.values[0] = value
            series.record(slot, START_NS + second * SECOND_NS)
        now_ns = START_NS + 25 * SECOND_NS
        assert ask(series, slot, 10 * SECOND_NS, now_ns).min == 10.0
        assert ask(series, slot, 5 * SECOND_NS, now_ns).min == 40.0


def test_a_now_before_the_newest_sample_means_the_time_of_that_sample(pool: Pool) -> None:
    with Series(pool, ["used"], ["used"], 1) as series:
        slot = series.add_node()
        samples = fill(series, slot, 200)
        newest_ns = samples[-1][0]
        for window_ns in (30 * SECOND_NS, 150 * SECOND_NS):
            early = ask(series, slot, window_ns, newest_ns - 5 * SECOND_NS)
            assert early == ask(series, slot, window_ns, newest_ns)


def test_times_between_milliseconds_cost_no_more_than_a_millisecond_a_row(pool: Pool) -> None:
    with Series(pool, ["used"], ["used"], 1) as series:
        slot = series.add_node()
        samples = []
        at_ns = START_NS + 123
        for number in range(500):
            at_ns += 700_000_000 + number * 1_234_567 % 600_000_007
            samples.append((at_ns, float(number % 17)))
            series.values[0] = samples[-1][1]
            series.record(slot, at_ns)
        start_ns = at_ns - 300 * SECOND_NS
        wider = model(samples, start_ns - start_ns % SHORT_NS, at_ns)
        answer = ask(series, slot, 300 * SECOND_NS, at_ns)
        assert near(answer, wider, 16 * 0.0005 / 10 + 1e-4)


def test_windows_over_many_nodes_answer_each_for_itself(pool: Pool) -> None:
    with Series(pool, ["used"], ["used"], 1500) as series:
        slots = [series.add_node() for _ in range(1500)]
        for second in range(3):
            for slot in slots:
                series.values[0] = slot * 10.0 + second
                series.record(slot, START_NS + second * SECOND_NS)
        series.remove_node(1100)
        now_ns = START_NS + 2 * SECOND_NS
        expected = np.arange(1500) * 10.0 + 2
        expected[1100] = math.nan
        everyone = series.window(WindowFunction.MAX, "used", LONG_NS, now_ns)
        np.testing.assert_array_equal(everyone, expected)
        some = np.array([1499, 3, 1100, 3], dtype=np.int32)
        out = np.empty(4)
        assert series.window(WindowFunction.MAX, "used", LONG_NS, now_ns, some, out) is out
        np.testing.assert_array_equal(out, expected[some])

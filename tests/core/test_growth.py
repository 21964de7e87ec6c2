"""Reservations that follow a task, and the curves they are taken from."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core.growth import (
    CurveLimits,
    Curves,
    Expectation,
    GrowthPolicy,
    Running,
    expected_first,
    reserved_first,
    reserved_now,
)
from controller.core.peaks import Peaks

MIB = 1 << 20
SECOND_NS = 1_000_000_000
POLICY = GrowthPolicy(rest_share=0.5, quantile=0.6)


def atoms(*sizes_mib: int) -> Peaks:
    count = len(sizes_mib)
    return Peaks(tuple(size * MIB for size in sizes_mib), (1.0,) * count, (SECOND_NS,) * count)


def run(curves: Curves, number: int, peak_mib: int, shape: list[tuple[float, float]]) -> None:
    """Let one task of category c run: (seconds, share of the peak) at each sample."""
    curves.started((number, 1), "c")
    for seconds, share in shape:
        curves.observe((number, 1), int(seconds * SECOND_NS), int(peak_mib * share * MIB))
    curves.ended((number, 1), whole=True, peak_bytes=peak_mib * MIB)


def expected_mib(curves: Curves, seconds: float, used_mib: int, peaks: Peaks) -> int:
    curves.started((99, 1), "c")
    curves.observe((99, 1), int(seconds * SECOND_NS), used_mib * MIB)
    expected = curves.expect((99, 1), peaks).peak_bytes // MIB
    curves.ended((99, 1), whole=False)
    return expected


PLATEAU = [(0.25 * i, min(1.0, i / 2)) for i in range(1, 12)]
LATE_SPIKE = [(0.25 * i, 0.25 if i < 10 else 1.0) for i in range(1, 13)]
EARLY_SPIKE = [(0.25 * i, 1.0 if i < 3 else 0.2) for i in range(1, 12)]
PEAKS = atoms(400, 600, 800, 1000)


def test_nothing_learned_keeps_what_a_task_was_placed_by() -> None:
    running = Running(first_bytes=500 * MIB, used_bytes=100 * MIB)
    assert reserved_now(running, Expectation(), POLICY) == 500 * MIB
    assert reserved_now(Running(500 * MIB, 700 * MIB), Expectation(), POLICY) == 700 * MIB
    assert expected_first(None, POLICY) == Expectation()


def test_a_running_task_has_its_use_and_a_share_of_the_rest_reserved() -> None:
    expected = Expectation(1_000 * MIB)
    assert reserved_first(300 * MIB, expected, POLICY) == 500 * MIB
    assert reserved_now(Running(500 * MIB, 400 * MIB), expected, POLICY) == 700 * MIB
    assert reserved_now(Running(500 * MIB, 1_100 * MIB), expected, POLICY) == 1_100 * MIB


def test_a_task_the_guard_has_ended_before_keeps_its_whole_peak() -> None:
    again = Running(first_bytes=900 * MIB, used_bytes=100 * MIB, whole=True)
    assert reserved_now(again, Expectation(900 * MIB), POLICY) == 900 * MIB


def test_what_is_expected_first_is_the_quantile_of_the_peaks() -> None:
    assert expected_first(PEAKS, POLICY).peak_bytes == 800 * MIB
    assert expected_first(PEAKS, GrowthPolicy(quantile=1.0)).peak_bytes == 1_000 * MIB


def test_a_task_on_its_plateau_is_expected_to_stay_there() -> None:
    curves = Curves(POLICY)
    for number, peak in enumerate((400, 600, 800, 1_000, 700), 1):
        run(curves, number, peak, PLATEAU)
    assert expected_mib(curves, 2.0, 400, PEAKS) == 400
    assert expected_mib(Curves(POLICY), 2.0, 400, PEAKS) > 400


def test_a_task_before_its_late_spike_is_expected_to_reach_it() -> None:
    curves = Curves(POLICY)
    for number, peak in enumerate((400, 600, 800, 1_000, 700), 1):
        run(curves, number, peak, LATE_SPIKE)
    assert expected_mib(curves, 2.0, 250, PEAKS) == 1_000
    assert expected_mib(curves, 2.0, 100, PEAKS) == 400


def test_a_task_after_its_early_spike_is_not_expected_to_grow_again() -> None:
    curves = Curves(POLICY)
    for number, peak in enumerate((1_000,) * 6, 1):
        run(curves, number, peak, EARLY_SPIKE)
    curves.started((99, 1), "c")
    curves.observe((99, 1), SECOND_NS // 2, 1_000 * MIB)
    curves.observe((99, 1), 2 * SECOND_NS, 200 * MIB)
    assert curves.expect((99, 1), PEAKS).peak_bytes < 500 * MIB


def test_a_task_beyond_all_that_was_learned_is_expected_to_grow_on() -> None:
    assert expected_mib(Curves(POLICY), 2.0, 1_200, PEAKS) == 1_380


def test_an_attempt_that_did_not_end_by_itself_teaches_nothing() -> None:
    curves = Curves(POLICY)
    curves.started((1, 1), "c")
    curves.observe((1, 1), SECOND_NS, 400 * MIB)
    curves.ended((1, 1), whole=False)
    assert expected_mib(curves, 1.0, 400, PEAKS) == expected_mib(Curves(POLICY), 1.0, 400, PEAKS)


def test_unknown_attempts_are_no_error() -> None:
    curves = Curves(POLICY)
    curves.observe((7, 1), SECOND_NS, MIB)
    curves.ended((7, 1), whole=True)
    assert curves.expect((7, 1), PEAKS) == expected_first(PEAKS, POLICY)
    assert curves.expect((7, 1), None) == Expectation()


def test_categories_and_rows_beyond_the_bounds_are_forgotten() -> None:
    curves = Curves(POLICY, CurveLimits(categories_max=2, rows_max=3))
    for number in range(10):
        curves.started((number, 1), f"c{number}")
        curves.observe((number, 1), SECOND_NS, MIB)
    assert len(curves._rows) == 3
    for number in range(10):
        curves.ended((number, 1), whole=True)
    assert (len(curves._rows), len(curves._categories)) == (0, 2)


samples = st.lists(st.tuples(st.integers(0, 200 * SECOND_NS), st.integers(0, 1 << 40)), max_size=30)


@given(st.lists(st.tuples(samples, st.booleans()), max_size=6), samples)
@settings(max_examples=60, deadline=None)
def test_what_is_reserved_is_never_below_the_use_and_always_the_same(
    past: list[tuple[list[tuple[int, int]], bool]], now: list[tuple[int, int]]
) -> None:
    """Whatever was learned; and never beyond the largest peak known or the use and its growth."""
    told = []
    for _ in range(2):
        curves = Curves(POLICY)
        for number, (story, whole) in enumerate(past):
            curves.started((number, 1), "c")
            for elapsed_ns, used in story:
                curves.observe((number, 1), elapsed_ns, used)
            curves.ended((number, 1), whole)
        curves.started((99, 1), "c")
        reserved = []
        for elapsed_ns, used in now:
            curves.observe((99, 1), elapsed_ns, used)
            expected = curves.expect((99, 1), PEAKS)
            reserved.append(reserved_now(Running(MIB, used), expected, POLICY))
            assert used <= reserved[-1] <= max(1_000 * MIB, int(used * POLICY.outgrown_factor))
        told.append(reserved)
    assert told[0] == told[1]


def test_any_age_is_followed_in_the_last_bin_at_most() -> None:
    curves = Curves(POLICY)
    run(curves, 1, 600, [(0.0, 0.1), (1e9, 1.0)])
    assert expected_mib(curves, 1e8, 600, PEAKS) == 600

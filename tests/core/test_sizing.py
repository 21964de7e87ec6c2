"""Learned sizes: their bounds, what is learned from what, and the sentences they keep."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core import sizing as sizing_module
from controller.core.peaks import Atom, Ladder, Prices, ladder_over
from controller.core.sizing import GIB, MIB, Ask, Basis, Sizing, SizingLimits

NODE_BYTES = 64 * GIB
SECOND_NS = 1_000_000_000
ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"  # beside the checkout: yardsticks and traces, no part of it

# Each example is a life of its own, so there are few of them.
lived = settings(max_examples=40, deadline=None)

categories = st.sampled_from(["align", "align:sort", "count", "report"])
asks = st.builds(
    Ask,
    category=categories,
    input_bytes=st.none() | st.integers(0, 1 << 42),
    declared_bytes=st.none() | st.integers(1, 1 << 40),
)
sizes = st.integers(1, 1 << 40)
happenings = st.lists(
    st.one_of(
        st.tuples(st.just("success"), asks, sizes, st.integers(0, 1 << 50)),
        st.tuples(st.just("out of memory"), asks, sizes, st.just(0)),
        st.tuples(st.just("live"), asks, sizes, st.integers(0, 1 << 50)),
    ),
    max_size=25,
)


def learned(story: list[tuple[str, Ask, int, int]], limits: SizingLimits | None = None) -> Sizing:
    """Return a sizing that has seen all that happened."""
    sizing = Sizing(limits)
    for what, ask, memory_bytes, time_ns in story:
        if what == "success":
            sizing.observe(ask, memory_bytes, time_ns)
        elif what == "live":
            sizing.observe_live(ask, memory_bytes, time_ns)
        else:
            sizing.observe_out_of_memory(ask, memory_bytes)
    return sizing


def runs(sizing: Sizing, category: str, peaks_mib: list[int], seconds: int = 60) -> Sizing:
    """Let a category succeed once with each peak."""
    for peak in peaks_mib:
        sizing.observe(Ask(category), peak * MIB, seconds * SECOND_NS)
    return sizing


@lived
@given(happenings, asks, st.integers(MIB, 1 << 45))
def test_a_size_stays_between_one_mib_and_the_largest_node(
    story: list[tuple[str, Ask, int, int]], ask: Ask, node_bytes: int
) -> None:
    size = learned(story).size(ask, node_bytes)
    assert MIB <= size.memory_bytes <= node_bytes
    assert size.reason


@lived
@given(happenings, asks, st.integers(MIB, 1 << 44))
def test_each_step_after_out_of_memory_is_half_as_much_again_until_the_node_ends(
    story: list[tuple[str, Ask, int, int]], ask: Ask, reached: int
) -> None:
    sizing, node_bytes = learned(story), 1 << 45
    for failures in range(1, 6):
        sizing.observe_out_of_memory(ask, reached)
        size = sizing.size_after_out_of_memory(ask, reached, failures, node_bytes)
        assert size.basis is Basis.LADDER
        assert min(node_bytes, int(1.5 * reached)) <= size.memory_bytes <= node_bytes
        reached = size.memory_bytes


@lived
@given(happenings, asks)
def test_the_same_story_gives_the_same_sizes(
    story: list[tuple[str, Ask, int, int]], ask: Ask
) -> None:
    one, other = learned(story), learned(story)
    assert one.size(ask, NODE_BYTES) == other.size(ask, NODE_BYTES)
    assert one.size(ask, NODE_BYTES) == one.size(ask, NODE_BYTES)
    assert one.peaks(ask) == other.peaks(ask)


@lived
@given(happenings, asks, st.floats(1.0, 8.0))
def test_an_out_of_memory_end_never_lowers_the_next_size(
    story: list[tuple[str, Ask, int, int]], ask: Ask, times: float
) -> None:
    sizing = learned(story)
    before = sizing.size(ask, NODE_BYTES).memory_bytes
    sizing.observe_out_of_memory(ask, int(before * times))
    assert sizing.size(ask, NODE_BYTES).memory_bytes >= before


@lived
@given(happenings, asks)
def test_what_a_peak_may_be_is_sorted_and_sums_to_one(
    story: list[tuple[str, Ask, int, int]], ask: Ask
) -> None:
    sizing = learned(story)
    peaks = sizing.peaks(ask)
    succeeded = any(what == "success" and one.category == ask.category for what, one, *_ in story)
    assert (peaks is not None) == succeeded
    if peaks is not None:
        assert list(peaks.memory_bytes) == sorted(peaks.memory_bytes)
        assert sum(peaks.weights) == pytest.approx(1.0)
        assert len(peaks.memory_bytes) == len(peaks.weights) == len(peaks.runtime_ns)


@lived
@given(happenings, asks)
def test_a_size_changes_only_with_the_version(
    story: list[tuple[str, Ask, int, int]], ask: Ask
) -> None:
    sizing = Sizing()
    seen: dict[int, int] = {}
    for happening in story:
        version = sizing.version(ask.category)
        size = sizing.size(ask, NODE_BYTES).memory_bytes
        assert seen.setdefault(version, size) == size
        before = version
        what, one, memory_bytes, time_ns = happening
        if what == "success":
            sizing.observe(one, memory_bytes, time_ns)
        elif what == "live":
            sizing.observe_live(one, memory_bytes, time_ns)
        else:
            sizing.observe_out_of_memory(one, memory_bytes)
        assert sizing.version(ask.category) >= before


def test_nothing_learned_gives_a_third_of_what_is_declared_or_of_the_default() -> None:
    sizing = Sizing()
    size = sizing.size(Ask("blast"), NODE_BYTES)
    assert (size.memory_bytes, size.basis) == (-(-GIB // 3), Basis.DEFAULT)
    declared = sizing.size(Ask("blast", declared_bytes=300 * MIB), NODE_BYTES)
    assert (declared.memory_bytes, declared.basis) == (100 * MIB, Basis.DECLARED)
    ask = Ask("blast", declared_bytes=300 * MIB)
    step = sizing.size_after_out_of_memory(ask, declared.memory_bytes, 1, NODE_BYTES)
    assert step.memory_bytes == 300 * MIB


def test_runs_that_are_over_at_once_say_little_of_others() -> None:
    sizing = Sizing()
    sizing.observe(Ask("true"), 300 << 10, 2_000_000)
    sizing.observe(Ask("echo", declared_bytes=100 * MIB), 400 << 10, 3_000_000)
    declared = sizing.size(Ask("train", declared_bytes=GIB), NODE_BYTES)
    assert declared.basis is Basis.BORROWED
    assert GIB / 4 < declared.memory_bytes < GIB
    assert sizing.size(Ask("train"), NODE_BYTES).memory_bytes > GIB / 4
    # Those that work say more than what nobody measured.
    for name in ("load", "sort", "join", "plot", "pack"):
        sizing.observe(Ask(name, declared_bytes=4 * GIB), 40 * MIB, 9_000_000_000)
    assert sizing.size(Ask("train", declared_bytes=GIB), NODE_BYTES).memory_bytes < GIB / 4


def test_the_fifth_of_equal_runs_is_sized_within_30_per_cent() -> None:
    size = runs(Sizing(), "train", [800, 810, 795, 805]).size(Ask("train"), NODE_BYTES)
    assert size.basis is Basis.CATEGORY
    assert 805 * MIB <= size.memory_bytes <= 1.3 * 805 * MIB


def test_few_runs_deserve_a_wider_margin_than_a_hundred() -> None:
    peaks = [480, 500, 520, 490, 510]
    few = runs(Sizing(), "count", peaks[:2]).size(Ask("count"), NODE_BYTES)
    many = runs(Sizing(), "count", peaks * 20).size(Ask("count"), NODE_BYTES)
    assert many.memory_bytes < few.memory_bytes


def test_a_new_category_borrows_from_the_others_instead_of_the_declaration() -> None:
    sizing = Sizing()
    for name in ("align", "sort", "count", "report"):
        for _ in range(3):
            sizing.observe(Ask(name, declared_bytes=32 * GIB), 200 * MIB, 60 * SECOND_NS)
    size = sizing.size(Ask("merge", declared_bytes=32 * GIB), NODE_BYTES)
    assert size.basis is Basis.BORROWED
    assert 200 * MIB <= size.memory_bytes <= 2 * GIB


def test_a_size_follows_the_input_where_the_input_tells() -> None:
    sizing = Sizing()
    for input_gib in (1, 8, 2, 6, 3, 12, 4, 10, 5, 9, 7, 11) * 2:
        ask = Ask("index", input_bytes=input_gib * GIB)
        sizing.observe(ask, input_gib * 300 * MIB, input_gib * 60 * SECOND_NS)
    small = sizing.size(Ask("index", input_bytes=2 * GIB), NODE_BYTES)
    large = sizing.size(Ask("index", input_bytes=10 * GIB), NODE_BYTES)
    assert small.basis is Basis.INPUT
    assert 600 * MIB <= small.memory_bytes <= 900 * MIB
    assert 3_000 * MIB <= large.memory_bytes <= 4_500 * MIB


def test_an_end_out_of_memory_is_used_at_once() -> None:
    sizing = runs(Sizing(), "train", [800] * 10)
    before = sizing.size(Ask("train"), NODE_BYTES).memory_bytes
    for _ in range(4):
        sizing.observe_out_of_memory(Ask("train"), before)
    assert sizing.size(Ask("train"), NODE_BYTES).memory_bytes > before


def test_sizes_of_a_category_with_many_runs_are_kept_for_a_while() -> None:
    sizing = Sizing()
    changes = []
    for number in range(250):
        before = sizing.version("train")
        runs(sizing, "train", [300 + number % 7])
        changes.append(sizing.version("train") > before)
    assert all(changes[:24])
    assert 1 <= sum(changes[200:]) <= 4
    for learn in (
        lambda: sizing.observe_out_of_memory(Ask("train"), GIB),
        lambda: runs(sizing, "train", [2_000]),
    ):
        before = sizing.version("train")
        learn()
        assert sizing.version("train") > before, "this is news at once"


def test_siblings_of_a_new_category_are_sized_from_the_running_pilot() -> None:
    sizing = Sizing()
    ask = Ask("assemble", declared_bytes=32 * GIB)
    for second in (1, 2, 4, 8, 16, 32):
        sizing.observe_live(ask, 700 * MIB + second * MIB, second * SECOND_NS)
    size = sizing.size(ask, NODE_BYTES)
    assert size.basis is Basis.PILOT
    assert 732 * MIB <= size.memory_bytes <= 2 * GIB
    grown = sizing.version("assemble")
    sizing.observe_live(ask, 6 * GIB, 64 * SECOND_NS)
    assert sizing.version("assemble") > grown
    assert sizing.size(ask, NODE_BYTES).memory_bytes > 6 * GIB


def test_a_pilot_that_still_grows_leaves_more_room_than_one_that_rests() -> None:
    growing, resting = Sizing(), Sizing()
    for second in (1, 2, 4, 8):
        growing.observe_live(Ask("load"), second * 100 * MIB, second * SECOND_NS)
        resting.observe_live(Ask("load"), 800 * MIB, second * SECOND_NS)
    sizes = [one.size(Ask("load"), NODE_BYTES).memory_bytes for one in (growing, resting)]
    assert sizes[0] > sizes[1]


def test_a_success_ends_what_the_pilot_said() -> None:
    sizing = Sizing()
    sizing.observe_live(Ask("load"), 10 * GIB, SECOND_NS)
    runs(sizing, "load", [300])
    sizing.observe_live(Ask("load"), 10 * GIB, SECOND_NS)
    assert sizing.size(Ask("load"), NODE_BYTES).basis is Basis.CATEGORY


def test_what_is_kept_is_bounded_and_the_longest_silent_category_goes_first() -> None:
    limits = SizingLimits(categories_max=3, runs_max=10, errors_max=8, pending_max=2)
    sizing = Sizing(limits)
    for number in range(50):
        for name in ("first", "second", "third"):
            sizing.observe(Ask(name, 10 * number + 1, GIB), (number + 1) * MIB, SECOND_NS)
            sizing.observe_out_of_memory(Ask(name), number * GIB + 1)
    runs(sizing, "fourth", [5])
    assert [one.category for one in sizing.categories()] == ["fourth", "second", "third"]
    kept = sizing._categories["second"]
    assert kept.history.count <= 10
    assert len(kept.reached) <= 2


def test_the_summary_tells_what_people_over_declare() -> None:
    sizing = Sizing()
    for peak in (100, 200, 300):
        sizing.observe(Ask("map", declared_bytes=2_000 * MIB), peak * MIB, SECOND_NS)
    sizing.observe_out_of_memory(Ask("map"), 50 * MIB)
    (told,) = sizing.categories()
    assert (told.runs, told.out_of_memory, told.declared_bytes) == (3, 1, 2_000 * MIB)
    assert told.peak_median_bytes == pytest.approx(200 * MIB, rel=1e-6)
    assert told.over_declared == pytest.approx(10.0)


def test_a_reason_names_the_numbers_it_used() -> None:
    reason = runs(Sizing(), "train", [800, 900]).size(Ask("train"), NODE_BYTES).reason
    assert "2 runs of train" in reason
    assert "900 MiB" in reason


@pytest.fixture
def chosen_over(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list that notes how many atoms each choice is made over: that is the work."""
    counts: list[int] = []

    def counted(atoms: Sequence[Atom], prices: Prices, least: float = 0.0) -> Ladder:
        counts.append(len(atoms))
        return ladder_over(atoms, prices, least)

    monkeypatch.setattr(sizing_module, "ladder_over", counted)
    return counts


def test_shapes_that_were_sized_are_sized_again_without_a_choice(chosen_over: list[int]) -> None:
    sizing = Sizing()
    for number in range(200):
        runs(sizing, f"kind {number % 50}", [100 + number])
    shapes = [Ask(f"kind {number % 100}", declared_bytes=GIB) for number in range(1_000)]
    first = [sizing.size(ask, NODE_BYTES) for ask in shapes]
    assert len(chosen_over) == 51  # one for each category with runs, one for all without
    chosen_over.clear()
    assert [sizing.size(ask, NODE_BYTES) for ask in shapes] == first
    assert chosen_over == []


def test_names_never_seen_are_sized_anew_only_when_the_others_have_grown() -> None:
    """Each success of anything used to size every waiting name anew."""
    sizing, versions = Sizing(), set()
    for number in range(1_000):
        runs(sizing, f"kind {number % 300}", [100 + number % 50])
        size = sizing.size(Ask("never seen"), NODE_BYTES)
        versions.add(sizing.version("never seen"))
    assert 20 < len(versions) < 120
    assert size.basis is Basis.BORROWED
    assert "by 300 other categories" in size.reason or "by 29" in size.reason


def test_a_burst_of_ends_out_of_memory_is_taken_in_at_a_bounded_cost(
    chosen_over: list[int],
) -> None:
    """Each one more used to double what the next size was chosen over."""
    sizing = runs(Sizing(), "train", list(range(100, 900)))
    sizing.size(Ask("train"), NODE_BYTES)
    (atoms,) = chosen_over
    pending = sizing.limits.pending_max
    for number in range(2 * pending):
        sizing.observe_out_of_memory(Ask("train"), (100 + number) * MIB)
        chosen_over.clear()
        sizing.size(Ask("train"), NODE_BYTES)
        assert len(chosen_over) == 1 + min(number + 1, pending)
        assert max(chosen_over) <= atoms + pending


def test_the_yardstick_finds_less_waste_and_less_loss_than_the_largest_seen() -> None:
    """Two small traces, where the yardstick is beside the project."""
    yardstick = SHARED / "bench" / "sizing" / "evaluate.py"
    traces = [SHARED / "traces" / f"{name}.csv" for name in ("cws-chipseq", "wfi-mag")]
    if not all(path.exists() for path in (yardstick, *traces)):
        pytest.skip("no yardstick with its traces is beside the checkout")
    evaluate = loaded("evaluate", yardstick)
    mass = loaded("sizing_predictor", ROOT / "benchmarks" / "sizing_predictor.py")
    for path in traces:
        (rows,) = evaluate.load([str(path)], "first", "all").values()
        node_mib = evaluate.node_size(rows, 131072.0)
        of_mass, of_largest = (
            evaluate.replay(rows, made(node_mib, 4096.0), node_mib, 1.0, "seq", 4096.0)
            for made in (mass.Mass, evaluate.MaxSeen)
        )
        assert of_mass["waste"] < 0.5 * of_largest["waste"]
        assert of_mass["lost_h"] < of_largest["lost_h"]


def loaded(name: str, path: Path):  # type: ignore[no-untyped-def]  # a module of another program
    """Return a module from a file, without leaving traces of it."""
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    path_before = list(sys.path)
    try:
        specification.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
        sys.path[:] = path_before
    return module

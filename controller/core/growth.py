"""What a task should have reserved now, and how the memory of its category moves over time.

Interface, in the order of a task's life (bytes and nanoseconds; `category` is any text, `key` is
(task_id, attempt); `peaks` is `Sizing.peaks(ask)`, None before anything is learned):

    curves = Curves(); policy = GrowthPolicy()
    expected = expected_first(peaks, policy)                 while it waits
    first = reserved_first(size_bytes, expected, policy)     what it is placed by
    curves.started(key, category)                            when it starts
    curves.observe(key, elapsed_ns, used_bytes)              with each sample of it
    expected = curves.expect(key, peaks)                     in a cycle
    reserved = reserved_now(Running(...), expected, policy)  resize its reservation to this
    curves.ended(key, whole, peak_bytes)                     whole: it ran to its own end

`elapsed_ns` is the time it has run, without the time it was frozen or paused. Every call takes a
bounded time and unknown keys are no error (a controller that has just started knows none).

A curve is a histogram: at each elapsed time (a third of an octave wide), which share of their
peaks tasks of the category used, and how much of it was still ahead of them. A task that uses 300
MiB after 3 s has likely the peak of which tasks use that much after 3 s.

Pure: no clock, no IO. Memory is bounded: one small array per category and one row per running
task; beyond the bounds the category that was used least recently is forgotten, and further tasks
are not followed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from controller.core.peaks import Peaks

Key: TypeAlias = tuple[int, int]  # (task_id, attempt)
Floats: TypeAlias = NDArray[np.float64]

FIRST_BIN_NS = 100_000_000
BINS_PER_OCTAVE = 3
BINS = 60  # up to a day; later is the last one
LEVELS = 16  # of the share of the peak that is used


@dataclass(frozen=True, slots=True)
class Expectation:
    """The most a task is expected to use from now on; 0 when nothing is known of its category."""

    peak_bytes: int = 0


@dataclass(frozen=True, slots=True)
class GrowthPolicy:
    """How far memory that is expected but not used yet is promised to others as well."""

    # The share of the expected rest (expected peak - used) that is set aside; 1: no overcommit.
    # In simulation (make sim-memory) 0.5 is 4 % faster with half as many kills again; where peaks
    # have heavy tails neither helps.
    rest_share: float = 0.65
    # Which of the possible peaks is the expected one: reserving a larger one costs time only.
    quantile: float = 0.6
    # A task beyond all that was learned is taken to grow by this factor more.
    outgrown_factor: float = 1.15


@dataclass(frozen=True, slots=True)
class CurveLimits:
    """What is kept at most, and how fast it is forgotten."""

    categories_max: int = 1_000
    rows_max: int = 10_000
    # Half of what is known is from the last so many tasks (times 0.69).
    memory_tasks: float = 64.0
    # How many tasks the assumption weighs that any share of the peak may be in use.
    doubt_tasks: float = 1.0


@dataclass(frozen=True, slots=True)
class Running:
    """One running task as its reservation is decided by."""

    first_bytes: int  # what it was placed by
    used_bytes: int
    whole: bool = False  # the guard ended it before: it keeps its whole expected peak


def expected_first(peaks: Peaks | None, policy: GrowthPolicy) -> Expectation:
    """Return what a task is expected to reach before it has started."""
    if peaks is None or not len(peaks.memory_bytes):
        return Expectation()
    sizes = np.asarray(peaks.memory_bytes, dtype=np.float64)
    weights = np.asarray(peaks.weights, dtype=np.float64)
    return Expectation(int(_quantile(sizes, weights, policy.quantile)))


def reserved_first(size_bytes: int, expected: Expectation, policy: GrowthPolicy) -> int:
    """Return what to set aside for a task before it starts; `size_bytes` is what sizing chose."""
    return int((expected.peak_bytes or size_bytes) * policy.rest_share)


def reserved_now(task: Running, expected: Expectation, policy: GrowthPolicy) -> int:
    """Return what to have set aside for a running task now, at least what it uses."""
    if expected.peak_bytes == 0:
        return max(task.first_bytes, task.used_bytes)
    rest_bytes = max(0, expected.peak_bytes - task.used_bytes)
    share = 1.0 if task.whole else policy.rest_share
    return task.used_bytes + int(rest_bytes * share)


@dataclass(slots=True)
class _Category:
    """Sums by time bin and level: how many tasks, and the share of the peak still ahead."""

    count: Floats = field(default_factory=lambda: np.zeros((BINS, LEVELS)))
    ahead: Floats = field(default_factory=lambda: np.zeros((BINS, LEVELS)))
    tasks: float = 0.0
    version: int = 0


@dataclass(slots=True)
class _Row:
    """One running task: its use at the end of each time bin, and the most within it; None until
    there is a sample."""

    category: str
    last: Floats | None = None
    most: Floats | None = None
    bin: int = 0
    used_bytes: int = 0
    peak_bytes: int = 0
    known: tuple[object, ...] = ()
    expected: Expectation = Expectation()


class Curves:
    """Memory over time, by category, learned from the samples of tasks that ran to their end."""

    def __init__(
        self, policy: GrowthPolicy | None = None, limits: CurveLimits | None = None
    ) -> None:
        self.policy = policy or GrowthPolicy()
        self.limits = limits or CurveLimits()
        self._categories: dict[str, _Category] = {}  # the least recently used first
        self._rows: dict[Key, _Row] = {}

    def started(self, key: Key, category: str) -> None:
        """Follow an attempt from now on."""
        if len(self._rows) < self.limits.rows_max:
            self._rows[key] = _Row(category)

    def observe(self, key: Key, elapsed_ns: int, used_bytes: int) -> None:
        """Take one sample of an attempt."""
        row = self._rows.get(key)
        if row is None:
            return
        row.bin = _bin(elapsed_ns)
        row.used_bytes = used_bytes
        row.peak_bytes = max(row.peak_bytes, used_bytes)
        if row.last is None or row.most is None:
            row.last, row.most = np.full(BINS, -1.0), np.zeros(BINS)
        row.last[row.bin] = used_bytes
        row.most[row.bin] = max(row.most[row.bin], used_bytes)

    def ended(self, key: Key, whole: bool, peak_bytes: int = 0) -> None:
        """Forget an attempt; learn from its samples if it ran to its own end with this peak."""
        row = self._rows.pop(key, None)
        if row is None or row.last is None or row.most is None or not whole:
            return
        peak = float(max(peak_bytes, row.peak_bytes))
        if peak <= 0:
            return
        category = self._touch(row.category)
        fade = math.exp(-1.0 / self.limits.memory_tasks)
        category.count *= fade
        category.ahead *= fade
        category.tasks = category.tasks * fade + 1.0
        category.version += 1
        bins = np.flatnonzero(row.last >= 0)
        ahead = np.maximum.accumulate(row.most[::-1])[::-1]
        at_peak = int(np.argmax(row.most))
        ahead[: at_peak + 1] = peak  # samples miss the peak itself
        levels = np.minimum(LEVELS - 1, (row.last[bins] / peak * LEVELS).astype(np.int64))
        category.count[bins, levels] += 1.0
        category.ahead[bins, levels] += ahead[bins] / peak

    def expect(self, key: Key, peaks: Peaks | None) -> Expectation:
        """Return what a running attempt is expected to reach, given how it went so far."""
        row = self._rows.get(key)
        if row is None or peaks is None or not len(peaks.memory_bytes):
            return expected_first(peaks, self.policy)
        category = self._categories.get(row.category)
        known = (row.bin, row.used_bytes, row.peak_bytes, category and category.version, peaks)
        if known != row.known:
            row.known = known
            row.expected = self._expect(row, category, peaks)
        return row.expected

    def _expect(self, row: _Row, category: _Category | None, peaks: Peaks) -> Expectation:
        sizes = np.asarray(peaks.memory_bytes, dtype=np.float64)
        weights = np.asarray(peaks.weights, dtype=np.float64)
        possible = sizes >= row.peak_bytes
        if not possible.any():
            return Expectation(int(row.used_bytes * self.policy.outgrown_factor))
        sizes, weights = sizes[possible], weights[possible]
        if category is not None:
            levels = np.minimum(LEVELS - 1, (row.used_bytes / sizes * LEVELS).astype(np.int64))
            seen, ahead = self._at(category, row.bin)
            weights = weights * seen[levels]
            sizes = np.maximum(sizes * ahead[levels], row.used_bytes)
        order = np.argsort(sizes, kind="stable")
        return Expectation(int(_quantile(sizes[order], weights[order], self.policy.quantile)))

    def _at(self, category: _Category, bin_: int) -> tuple[Floats, Floats]:
        """Return by level how likely it is at this time, and the share of the peak still ahead."""
        near = slice(max(0, bin_ - 1), bin_ + 2)
        count = category.count[near].sum(axis=0)
        ahead = category.ahead[near].sum(axis=0)
        spread = count.copy()
        spread[1:] += 0.5 * count[:-1]
        spread[:-1] += 0.5 * count[1:]
        doubt = self.limits.doubt_tasks
        likely = spread + doubt / LEVELS
        behind = np.divide(ahead, count, out=np.ones(LEVELS), where=count > 0)
        share = (behind * count + doubt) / (count + doubt)
        return likely, share

    def _touch(self, name: str) -> _Category:
        kept = self._categories.pop(name, None) or _Category()
        if len(self._categories) >= self.limits.categories_max:
            del self._categories[next(iter(self._categories))]
        self._categories[name] = kept
        return kept


def _bin(elapsed_ns: int) -> int:
    if elapsed_ns <= FIRST_BIN_NS:
        return 0
    return min(BINS - 1, int(math.log2(elapsed_ns / FIRST_BIN_NS) * BINS_PER_OCTAVE))


def _quantile(sizes: Floats, weights: Floats, share: float) -> float:
    """Return the smallest size that at least this share of the weight lies at or below."""
    sums = np.cumsum(weights)
    return float(sizes[min(len(sizes) - 1, int(np.searchsorted(sums, share * sums[-1])))])

"""What a task should have reserved now, and how the memory of its category moves over time.

Interface, in the order of a task's life (bytes and nanoseconds; `category` is any text, `key` is
(task_id, attempt); `peaks` is what sizing learned of its category, None before anything is):

    curves = Curves(); policy = GrowthPolicy()
    expected = curves.expected_first(category, peaks)        while it waits
    first = reserved_first(size_bytes, expected, policy)     what it is placed by
    curves.started(key, category)                            when it starts
    curves.observe(key, elapsed_ns, used_bytes)              with each sample of it
    expected = curves.expected_peak(key, peaks)              in a cycle
    reserved = reserved_now(Running(...), expected, policy)  resize its reservation to this
    curves.ended(key, whole)                                 whole: it ran to its own end

`elapsed_ns` is the time it has run, without the time it was frozen or paused. Every call takes a
bounded time and unknown keys are no error (a controller that has just started knows none).

Pure: no clock, no IO. Memory is bounded: per category one small array, and per running task one
row of it; beyond the bounds the category that was used least recently is forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

Key: TypeAlias = tuple[int, int]  # (task_id, attempt)


class Peaks(Protocol):
    """What was learned of a category's peaks: atoms sorted by size, with their weights."""

    @property
    def memory_bytes(self) -> Sequence[int]: ...

    @property
    def weights(self) -> Sequence[float]: ...


@dataclass(frozen=True, slots=True)
class Expectation:
    """The most a task is expected to use; 0 when nothing is known of its category."""

    peak_bytes: int = 0
    observations: int = 0  # ended tasks it is learned from


@dataclass(frozen=True, slots=True)
class GrowthPolicy:
    """How far memory that is expected but not used yet is promised to others as well."""

    # The share of the expected rest (expected peak - used) that is set aside; 1: no overcommit.
    rest_share: float = 0.6


@dataclass(frozen=True, slots=True)
class Running:
    """One running task as its reservation is decided by."""

    first_bytes: int  # what it was placed by
    used_bytes: int
    peak_bytes: int  # the most it has used so far
    exact: bool = False  # --mem-exact or strict: stays at what it was placed by
    whole: bool = False  # the guard ended it before: it keeps its whole expected peak


def reserved_first(size_bytes: int, expected: Expectation, policy: GrowthPolicy) -> int:
    """Return what to set aside for a task before it starts; `size_bytes` is what sizing chose."""
    if expected.peak_bytes == 0:
        return size_bytes
    return int(expected.peak_bytes * policy.rest_share)


def reserved_now(task: Running, expected: Expectation, policy: GrowthPolicy) -> int:
    """Return what to have set aside for a running task now, at least what it uses."""
    if task.exact or expected.peak_bytes == 0:
        return max(task.first_bytes, task.used_bytes)
    rest_bytes = max(0, expected.peak_bytes - task.used_bytes)
    share = 1.0 if task.whole else policy.rest_share
    return task.used_bytes + int(rest_bytes * share)


class Curves:
    """Memory over time, by category, learned from samples of running and ended tasks."""

    def started(self, key: Key, category: str) -> None:
        """Begin a row for an attempt."""

    def observe(self, key: Key, elapsed_ns: int, used_bytes: int) -> None:
        """Take one sample of an attempt."""

    def ended(self, key: Key, whole: bool) -> None:
        """Learn from an attempt that ran to its own end; forget one that did not."""

    def expected_first(self, category: str, peaks: Peaks | None) -> Expectation:
        """Return what a task of a category is expected to reach before it has started."""
        del category
        if peaks is None or not len(peaks.memory_bytes):
            return Expectation()
        return Expectation(int(max(peaks.memory_bytes)), len(peaks.memory_bytes))

    def expected_peak(self, key: Key, peaks: Peaks | None) -> Expectation:
        """Return what a running attempt is expected to reach, given how it went so far."""
        del key
        return self.expected_first("", peaks)

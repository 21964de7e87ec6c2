"""What a task's peak may be, and the size that costs least under it.

An attempt at `a` bytes of a task with peak `p` and runtime `t` holds `a` for `t`, and has lost `t`
if `a < p`. A lost nanosecond is priced at `lost_bytes` held as long. Sizes are chosen with the
attempts that may follow them, so the first size and the steps after it are one decision.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Atom = tuple[float, float, float]  # log of bytes (or of a factor), weight, log of nanoseconds
Atoms = Sequence[Atom] | NDArray[np.float64]  # or as rows of an array

EXPONENT_MAX = 60.0  # beyond any memory or runtime
STEP_MIN = 1.5  # a step after running out of memory is at least this much larger
ATOMS_MAX = 32  # what a distribution is thinned to before a size is chosen


@dataclass(frozen=True, slots=True)
class Peaks:
    """The predictive distribution of a task's peak: atoms sorted by memory, as plain tuples.

    `weights` sum to 1; `runtime_ns` is what a run with that peak takes.
    """

    memory_bytes: tuple[int, ...]
    weights: tuple[float, ...]
    runtime_ns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prices:
    """What is paid for a failed attempt, beside the memory it held."""

    lost_bytes: float  # a lost nanosecond costs as much as holding this for a nanosecond
    failure_ns: float  # each failure costs this much lost runtime in addition

    def beside(self, scale_bytes: float, scale_ns: float) -> Prices:
        """Return the prices in units of the scales."""
        return Prices(self.lost_bytes / scale_bytes, self.failure_ns / scale_ns)


class Ladder:
    """The cheapest sequence of sizes over a distribution of (peak, weight, runtime).

    `peaks` rise; the last is never left: beyond it sizes grow by STEP_MIN. The first size is
    at least `least`.
    """

    def __init__(
        self,
        peaks: Sequence[float],
        weights: Sequence[float],
        runtimes: Sequence[float],
        prices: Prices,
        least: float = 0.0,
    ) -> None:
        self._least = least
        self.peaks = list(peaks)
        self._weights, self._runtimes = list(weights), list(runtimes)
        count = len(self.peaks)
        # Beyond index i: the expected runtime, and the expected price of failing with all of it.
        beyond = [0.0] * (count + 1)
        price = [0.0] * (count + 1)
        for index in range(count - 1, -1, -1):
            spent = weights[index] * runtimes[index]
            beyond[index] = beyond[index + 1] + spent
            failed = spent + weights[index] * prices.failure_ns
            price[index] = price[index + 1] + failed * prices.lost_bytes
        self._beyond, self._price = beyond, price
        self._cost = [0.0] * (count + 1)
        self._step = [count - 1] * count
        for start in range(count - 1, -1, -1):
            self._cost[start], self._step[start] = self._best(start, start)

    def _best(self, start: int, lowest: int) -> tuple[float, int]:
        """Return the least cost, and its step, given that the peak is at or beyond `start`."""
        best, step = math.inf, len(self.peaks) - 1
        total = self._beyond[start]
        for index in range(lowest, len(self.peaks)):
            held = self.peaks[index] * total
            if held >= best:
                break
            cost = held + self._price[index + 1] + self._cost[index + 1]
            if cost < best:
                best, step = cost, index
        return best, step

    def within(self) -> tuple[float, float]:
        """Return where nine of ten peaks lie."""
        total, passed, low, high = sum(self._weights), 0.0, self.peaks[0], self.peaks[-1]
        for peak, weight in zip(self.peaks, self._weights, strict=True):
            if passed <= 0.05 * total:
                low = peak
            if passed < 0.95 * total:
                high = peak
            passed += weight
        return low, high

    def first(self) -> float:
        """Return the size of a first attempt."""
        return max(self._least, self.peaks[self._step[0]])

    def distribution(self, scale_bytes: float, scale_ns: float) -> Peaks:
        """Return what the sizes are chosen over, in units of the scales."""
        total = sum(self._weights)
        return Peaks(
            tuple(math.ceil(peak * scale_bytes) for peak in self.peaks),
            tuple(weight / total for weight in self._weights),
            tuple(round(runtime * scale_ns) for runtime in self._runtimes),
        )

    def after(self, reached: float) -> float:
        """Return the size of the attempt after one that ran out of memory at `reached`."""
        least = reached * STEP_MIN
        lowest = bisect_left(self.peaks, least)
        if lowest == len(self.peaks):
            return least
        start = bisect_right(self.peaks, reached)
        return self.peaks[self._best(start, lowest)[1]]


def ladder_over(atoms: Atoms, prices: Prices, least: float = 0.0) -> Ladder:
    """Return the ladder over atoms in logarithms."""
    rows = np.array(atoms, dtype=np.float64)
    rows[:, ::2] = np.exp(np.minimum(rows[:, ::2], EXPONENT_MAX))
    rows = rows[np.lexsort(rows.T[::-1])]
    whole = list(zip(*rows.T.tolist(), strict=True))
    return Ladder(*thinned(whole), prices, least)


def thinned(
    atoms: list[tuple[float, float, float]], most: int = ATOMS_MAX
) -> tuple[list[float], list[float], list[float]]:
    """Return at most about that many atoms in place of rising (peak, weight, runtime) ones.

    Neighbours are merged to the larger peak, so nothing is made to look smaller than it was; the
    largest keep to themselves, since there each one matters.
    """
    total = sum(atom[1] for atom in atoms)
    peaks: list[float] = []
    weights: list[float] = []
    runtimes: list[float] = []
    left, filled = total, math.inf
    for peak, weight, runtime in atoms:
        # The share of the tail an atom may hold: fine where sizes are chosen, coarse below.
        if filled + weight > max(left / (most / 3), 0.25 * total / most) or peak > peaks[-1] * 1.2:
            peaks.append(peak)
            weights.append(weight)
            runtimes.append(runtime)
            filled = weight
        else:
            spent = weights[-1] * runtimes[-1] + weight * runtime
            weights[-1] += weight
            runtimes[-1] = spent / weights[-1]
            peaks[-1] = peak
            filled += weight
        left -= weight
    return peaks, weights, runtimes

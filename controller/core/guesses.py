"""What a category's history says of its next task: several guesses, each with its past errors.

Each guess is made before a task is observed, so its errors are honest: a way of guessing that fits
the past and not the next task shows it. Everything is in natural logarithms of bytes, because tasks
differ by factors.
"""

from __future__ import annotations

import math
from bisect import insort
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ROWS_START = 8
LOG_PEAK, LOG_RUNTIME, LOG_INPUT = 0, 1, 2  # columns; those of the guesses follow
COLUMNS = 3

RECENT_SHARE = 0.3  # weight of the newest peak in RECENT
SLOPE_DOUBT = 0.3  # evidence (variance of log input x tasks) that halves a slope
NEAR_WIDTH = 0.12  # how far in log input NEAR looks
NEAR_DOUBT = 0.5  # tasks of weight 1 at the centre that NEAR starts with


class Guess(IntEnum):
    """The ways of guessing; those from PROPORTIONAL on need the input's size."""

    CENTRE = 0  # the median peak
    RECENT = 1  # a moving mean
    PROPORTIONAL = 2  # the median of peak / input
    LINE = 3  # a line of log peak over log input
    NEAR = 4  # the mean peak of inputs about as large


GUESSES = tuple(Guess)  # a loop over the enumeration itself takes three times as long


class History:
    """The newest `rows_max` runs of one category, and the errors of each guess about them."""

    def __init__(self, rows_max: int) -> None:
        self._rows_max = rows_max
        self._rows = np.empty((ROWS_START, COLUMNS + len(Guess)))
        self.count = 0  # rows kept
        self.seen = 0  # ever observed
        self.top = -math.inf  # the largest log peak kept
        self._recent = 0.0
        self._peaks: list[float] = []  # of the rows, in their order by size
        self._runtimes: list[float] = []

    def column(self, index: int) -> Floats:
        """Return a column of what is kept, oldest first."""
        return self._rows[: self.count, index]

    def errors(self, guess: Guess) -> Floats:
        """Return log(peak / guess) of the runs kept; NaN where the guess could not be made."""
        return self.column(LOG_PEAK) - self.column(COLUMNS + guess)

    def add(
        self, log_peak: float, log_runtime: float, log_input: float, guesses: list[float]
    ) -> None:
        """Keep one run and what was guessed of it; `log_input` is NaN where unknown. The oldest
        fifth makes room."""
        if self.count == self._rows_max:
            kept = self._rows_max - max(1, self._rows_max // 5)
            self._rows[:kept] = self._rows[self.count - kept : self.count].copy()
            self.count = kept
            self._peaks = sorted(self.column(LOG_PEAK).tolist())
            self._runtimes = sorted(self.column(LOG_RUNTIME).tolist())
            self.top = self._peaks[-1]
        elif self.count == len(self._rows):
            grown = min(self._rows_max, 2 * self.count) - self.count
            self._rows = np.concatenate([self._rows, np.empty((grown, self._rows.shape[1]))])
        row = self._rows[self.count]
        row[LOG_PEAK], row[LOG_RUNTIME], row[LOG_INPUT] = log_peak, log_runtime, log_input
        row[COLUMNS:] = guesses
        share = max(RECENT_SHARE, 1 / (self.count + 1))
        self._recent += share * (log_peak - self._recent)
        self.count += 1
        self.seen += 1
        self.top = max(self.top, log_peak)
        insort(self._peaks, log_peak)
        insort(self._runtimes, log_runtime)

    def centre(self) -> tuple[float, float]:
        """Return the medians of log peak and log runtime; call it only with a run kept."""
        return _median(self._peaks), _median(self._runtimes)

    def guesses(self, log_input: float) -> list[float]:
        """Return every guess; NaN where one cannot be made."""
        return [self.guess(guess, log_input) for guess in GUESSES]

    def guess(self, guess: Guess, log_input: float) -> float:
        """Return one guess of the next log peak; NaN where it cannot be made."""
        if not self.count:
            return math.nan
        if guess is Guess.CENTRE:
            return _median(self._peaks)
        if guess is Guess.RECENT:
            return self._recent
        if math.isnan(log_input):
            return math.nan
        inputs = self.column(LOG_INPUT)
        known = ~np.isnan(inputs)
        if not known.any():
            return math.nan
        inputs, peaks = inputs[known], self.column(LOG_PEAK)[known]
        if guess is Guess.PROPORTIONAL:
            return log_input + float(np.median(peaks - inputs))
        if guess is Guess.LINE:
            return _line(inputs, peaks, log_input)
        return _near(inputs, peaks, log_input)


def _median(rising: list[float]) -> float:
    middle = len(rising) // 2
    return rising[middle] if len(rising) % 2 else (rising[middle - 1] + rising[middle]) / 2


def _line(inputs: Floats, peaks: Floats, log_input: float) -> float:
    middle, centre = inputs.mean(), peaks.mean()
    apart = inputs - middle
    slope = float(apart @ (peaks - centre)) / (float(apart @ apart) + SLOPE_DOUBT)
    # An input far from all seen ones is no reason to follow the line to the end.
    low, high = float(apart.min()) - 1.0, float(apart.max()) + 1.0
    return float(centre) + slope * min(max(log_input - float(middle), low), high)


def _near(inputs: Floats, peaks: Floats, log_input: float) -> float:
    weights = np.exp(-0.5 * ((inputs - log_input) / NEAR_WIDTH) ** 2)
    known = float(weights.sum())
    return float(weights @ peaks + NEAR_DOUBT * peaks.mean()) / (known + NEAR_DOUBT)

"""What a category's past errors say of its next one: which guess to follow, and how wide to size.

Errors are shared: what the first, second ... runs of other categories did to a guess tells how wide
to size a category of which as little is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from controller.core.guesses import (
    GUESSES,
    LOG_INPUT,
    LOG_PEAK,
    LOG_RUNTIME,
    Floats,
    Guess,
    History,
)
from controller.core.peaks import Ladder, Prices

# Stages of knowledge: by the runs known, from which count on.
STAGES = (1, 2, 3, 5, 9, 17)
# What is believed of errors before any are seen: this shape, times a spread by stage.
PRIOR_SHAPE = (-1.2, -0.6, -0.2, 0.0, 0.2, 0.5, 1.0, 1.8, 3.0)
PRIOR_SPREAD = (0.3, 0.25, 0.25, 0.2, 0.2, 0.15)
PRIOR_RUNS = 4.0  # errors seen that count as much as that belief
TAIL_FACTORS = (0.2, 0.5, 1.0)  # log; beyond all that is known
TAIL_RUNS = 0.1  # the weight of the tail, in runs
INPUT_WIDTH = 0.5  # how far, in log input, an error says something
INPUT_FLOOR = 0.05  # what it says beyond
# A peak comes again about as it was, not to the byte: a size on top of it would often just fail.
BLUR = (-0.03, 0.0, 0.03)  # log, where errors are as wide as those of others
RECENT_HALF = 40.0  # runs after which an error counts half
JUDGED_HALF = 20.0  # and in the choice of a guess
INPUT_CAUTION = 1.1  # a guess by input must be better by this to be followed
ERROR_MAX = 2.0
WIDTH_RUNS = 3.0  # runs that what is usual counts for, beside a category's own errors
JUDGED_LEAST = 3
QUANTILES = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
JUDGED_RUNS = 64  # by how many of the newest runs guesses are judged


class SharedErrors:
    """The newest errors of every guess at every stage, over all categories."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: list[list[list[tuple[float, float]]]] = [[[] for _ in Guess] for _ in STAGES]

    def learn(
        self, history: History, log_peak: float, log_runtime: float, guesses: list[float]
    ) -> None:
        """Keep how far off the guesses of a category with at least one run were."""
        at_stage = self._kept[stage_of(history.count)]
        usual = history.centre()[1]
        for guess, value in zip(GUESSES, guesses, strict=True):
            if math.isnan(value):
                continue
            kept = at_stage[guess]
            if len(kept) >= self._most:
                del kept[: self._most // 4 + 1]
            kept.append((log_peak - value, log_runtime - usual))

    def at(self, stage: int, guess: Guess) -> list[tuple[float, float]]:
        """Return errors and runtimes relative to the usual one."""
        return self._kept[stage][guess]


def stage_of(runs: int) -> int:
    """Return the index in STAGES of so many known runs, at least 1."""
    return sum(runs >= least for least in STAGES) - 1


@dataclass(slots=True)
class Fit:
    """What a history says, until it has grown by a few per cent."""

    order: tuple[Guess, ...]  # the best first
    own: dict[Guess, tuple[Floats, Floats, Floats]]  # errors, log runtime / usual, log input
    shared: dict[Guess, Floats]  # atoms
    widths: dict[Guess, float]  # how wide its errors are beside those of others
    usual: float  # log runtime
    prices: Prices  # of the time of the fit
    valid_until: int  # runs seen
    ladders: dict[tuple[int, ...], Ladder] = field(default_factory=dict)

    def follow(self, log_input: float) -> Guess:
        """Return the guess to follow."""
        if math.isnan(log_input):
            return next(guess for guess in self.order if guess < Guess.PROPORTIONAL)
        return self.order[0]

    def atoms(self, guess: Guess, log_input: float) -> Floats:
        """Return the errors to expect, as atoms of log error, weight, log runtime / usual."""
        errors, runtimes, inputs = self.own[guess]
        weights = np.ones(len(errors))
        if guess is not Guess.CENTRE:
            weights = _fading(len(errors), RECENT_HALF)
        if guess >= Guess.PROPORTIONAL:
            apart = (inputs - log_input) / INPUT_WIDTH
            weights *= INPUT_FLOOR + (1 - INPUT_FLOOR) * np.exp(-0.5 * apart**2)
        width = self.widths[guess]
        own = [
            np.column_stack((errors + off * width, weights / len(BLUR), runtimes)) for off in BLUR
        ]
        top, share = float(errors.max(initial=0.0)), TAIL_RUNS / len(TAIL_FACTORS)
        tail = [(top + far * width, share, 0.0) for far in TAIL_FACTORS]
        return np.concatenate([*own, self.shared[guess], tail])


def fit(history: History, shared: SharedErrors, doubt: float, prices: Prices) -> Fit:
    """Return what a history with at least one run says.

    `doubt` is the weight of the shared errors, in runs.
    """
    stage = stage_of(history.count)
    centre, usual = history.centre()
    peaks, inputs = history.column(LOG_PEAK), history.column(LOG_INPUT)
    runtimes = history.column(LOG_RUNTIME) - usual
    own: dict[Guess, tuple[Floats, Floats, Floats]] = {}
    borrowed: dict[Guess, Floats] = {}
    missed: dict[Guess, float] = {}
    widths: dict[Guess, float] = {}
    for guess in Guess:
        errors = history.errors(guess)
        known = ~np.isnan(errors)
        if guess >= Guess.PROPORTIONAL and np.isnan(inputs).all():
            continue
        pool = shared.at(stage, guess)
        usually = _usual_error(pool, stage)
        width = (_far(errors[known]) + WIDTH_RUNS * usually) / (int(known.sum()) + WIDTH_RUNS)
        widths[guess] = width / usually
        borrowed[guess] = _borrowed(pool, stage, doubt, widths[guess])
        if guess is Guess.CENTRE:  # its errors need not be those of the time
            errors, known = peaks - centre, np.ones(len(peaks), dtype=bool)
        own[guess] = (errors[known], runtimes[known], inputs[known])
        newest = [column[known][-JUDGED_RUNS:] for column in (peaks, errors, runtimes)]
        judged = len(newest[0]) if len(newest[0]) >= JUDGED_LEAST else 0
        cost = judged * _cost(newest[0], newest[1], newest[2], prices.lost_bytes) if judged else 0.0
        caution = INPUT_CAUTION if guess >= Guess.PROPORTIONAL else 1.0
        missed[guess] = (cost + 2 * (1 + 2 * caution * usually)) / (judged + 2)
    order = tuple(sorted(missed, key=lambda guess: (missed[guess], guess)))
    grown = history.seen + max(1, history.count // 25)
    return Fit(order, own, borrowed, widths, usual, prices, grown)


def _usual_error(pool: list[tuple[float, float]], stage: int) -> float:
    """Return how far off a guess is at a stage, over all categories."""
    pooled = sum(min(abs(error), ERROR_MAX) for error, _ in pool)
    return (pooled + PRIOR_RUNS * PRIOR_SPREAD[stage]) / (len(pool) + PRIOR_RUNS)


def _far(errors: Floats) -> float:
    return float(np.minimum(np.abs(errors), ERROR_MAX).sum())


def _cost(peaks: Floats, errors: Floats, runtimes: Floats, lost_bytes: float) -> float:
    """Return what following a guess would have cost at its best margin, over what was used."""
    margins = np.append(np.quantile(errors, QUANTILES), errors.max() + 0.1)
    guesses = np.exp(peaks - errors)[:, None] * np.exp(margins)[None, :]
    needed, ran = np.exp(peaks)[:, None], np.exp(runtimes)[:, None]
    again = lost_bytes + np.maximum(1.1 * needed, 1.5 * guesses)
    counted = ran * _fading(len(peaks), JUDGED_HALF)[:, None]
    costs = counted * (guesses + np.where(guesses < needed, again, 0.0))
    return float(costs.sum(axis=0).min() / (counted * needed).sum())


def _fading(count: int, half: float) -> Floats:
    """Return weights of that many runs, oldest first; those `half` runs older count half."""
    return 0.5 ** (np.arange(count)[::-1] / half)


def _borrowed(pool: list[tuple[float, float]], stage: int, doubt: float, width: float) -> Floats:
    """Return the errors of others, as wide as this category's are."""
    share = len(pool) / (len(pool) + PRIOR_RUNS)
    made = [(width * error, doubt * share / len(pool), runtime) for error, runtime in pool]
    believed, spread = doubt * (1 - share) / len(PRIOR_SHAPE), width * PRIOR_SPREAD[stage]
    return np.array(made + [(spread * shape, believed, 0.0) for shape in PRIOR_SHAPE])

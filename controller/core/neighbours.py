"""What all categories together say of one that has not run yet."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from controller.core.fits import PRIOR_SHAPE
from controller.core.guesses import Floats
from controller.core.peaks import Atom, Ladder

COLD_SPREAD = 1.0  # log; what is believed around the middle of few categories
COLD_RUNS = 3.0  # categories that this belief counts for
DECLARED_WIDTH = 0.3  # log; how far apart declarations are still alike
DECLARED_FLOOR = 0.3  # what a category counts whose declaration is unlike
KERNEL = (-0.2, 0.0, 0.2)  # log; a category like another is not the same
RUNTIME_SLOPE = 0.6  # larger tasks run longer: log runtime over log peak
RENEWED_EACH = 20  # one new run, or category, in so many makes them be looked at anew
# A run that is over at once tells little of what works: it counts by how much of this it took.
TELLING_NS = 0.3e9
UNMEASURED_COUNT = 0.25  # neighbours that what nobody measured counts as
LIKE_NAME = 200.0  # how much more a category with the same words in its name counts
LIKE_POWER = 3.0  # how fast that fades as fewer words are shared


class Neighbour(NamedTuple):
    """A category with runs: medians in logarithms, NaN where nothing was declared."""

    words: frozenset[str]
    peak: float
    runtime: float
    over_declared: float


class Words(NamedTuple):
    """The words of a name, as far as they tell it from others."""

    known: tuple[str, ...]  # some neighbour has them too
    others: int  # how many nobody else has


class Neighbours:
    """All of them, as of one moment: after so many runs, and so many categories' first ones."""

    def __init__(self, known: Iterable[Neighbour], runs: int, firsts: int) -> None:
        known = list(known)
        self.count = len(known)
        self._runs_max = runs + max(1, runs // RENEWED_EACH)
        self._firsts_max = firsts + max(1, firsts // RENEWED_EACH)
        self.ladders: dict[tuple[Words, int | None], Ladder] = {}
        self._peaks = np.array([one.peak for one in known])
        self._runtimes = np.array([one.runtime for one in known])
        self._over = np.array([one.over_declared for one in known])
        self._with_word: dict[str, list[int]] = {}
        for index, one in enumerate(known):
            for word in sorted(one.words):
                self._with_word.setdefault(word, []).append(index)
        self._lengths = np.array([sum(map(self._telling, sorted(one.words))) for one in known])

    def is_old(self, runs: int, firsts: int) -> bool:
        """Say whether so many runs and categories are so many more that they may tell otherwise."""
        return runs >= self._runs_max or firsts >= self._firsts_max

    def words_that_tell(self, category: str) -> Words:
        """Return the words of a name; names that are equal in them have equal neighbours."""
        words = words_of(category)
        known = tuple(sorted(words & self._with_word.keys()))
        return Words(known, len(words) - len(known))

    def _telling(self, word: str) -> float:
        """Return how much a word tells: the fewer categories have it, the more."""
        return math.log((self.count + 1.0) / (len(self._with_word.get(word, ())) + 0.5))

    def atoms(
        self, words: Words, declared_bytes: int | None, unmeasured_bytes: float
    ) -> list[Atom]:
        """Return what the peak of a category may be, as atoms of log bytes, weight, log ns.

        `unmeasured_bytes` is what is taken to be used where there is no neighbour; it speaks where
        they have hardly run.
        """
        weights = self._weights(words)
        guesses = [(self._peaks, weights, self._runtimes)]
        if declared_bytes:
            known, declared = ~np.isnan(self._over), math.log(declared_bytes)
            apart = np.where(known, self._peaks + self._over - declared, 9.0)
            weights *= DECLARED_FLOOR + np.exp(-0.5 * (apart / DECLARED_WIDTH) ** 2)
            guesses.append((declared - self._over[known], weights[known], self._runtimes[known]))
        usual = float(np.average(self._runtimes, weights=weights))
        made: list[Atom] = []
        for known_peaks, counts, known_runtimes in guesses:
            peaks = np.append(known_peaks, math.log(unmeasured_bytes))
            runtimes = np.append(known_runtimes, usual)
            share = np.append(counts, UNMEASURED_COUNT)
            share /= share.sum() * len(guesses)
            rows = zip(peaks.tolist(), share.tolist(), runtimes.tolist(), strict=True)
            made += [
                (peak + near, weight / len(KERNEL), runtime)
                for peak, weight, runtime in rows
                for near in KERNEL
            ]
            centre, middle = (float(share @ of_all) * len(guesses) for of_all in (peaks, runtimes))
            believed = COLD_RUNS / (len(peaks) + COLD_RUNS) / len(PRIOR_SHAPE) / len(guesses)
            made += [
                (centre + apart, believed, middle + RUNTIME_SLOPE * apart)
                for apart in (COLD_SPREAD * shape for shape in PRIOR_SHAPE)
            ]
        return made

    def _weights(self, words: Words) -> Floats:
        """Return how much each neighbour counts: by its name, and by how long it has run."""
        shared = np.zeros(self.count)
        for word in words.known:
            shared[self._with_word[word]] += self._telling(word)
        own = sum(map(self._telling, words.known))
        own += words.others * self._telling("")  # a word nobody has
        total = self._lengths + own
        likeness = shared / np.maximum(total - shared, 1e-9)
        by_name = 1.0 + LIKE_NAME * likeness**LIKE_POWER
        weights: Floats = by_name * np.minimum(np.exp(self._runtimes) / TELLING_NS, 1.0)
        return weights


def words_of(name: str) -> frozenset[str]:
    """Return the words of a category's name, in lower case."""
    return frozenset(re.findall(r"[a-z]+|[0-9]+", name.lower()))

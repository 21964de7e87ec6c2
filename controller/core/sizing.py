"""How much memory a task gets, learned from the runs of its category and of the others.

A size is chosen by expected cost over what the peak may be (peaks.py). That is told by the guesses
of a category's history and their past errors (guesses.py, fits.py), by a running sibling, or by
the other categories (neighbours.py), whichever is known first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from mass.units import size_words

from controller.core.fits import PRIOR_SHAPE, Fit, SharedErrors, fit
from controller.core.guesses import LOG_PEAK, Floats, Guess, History
from controller.core.neighbours import Neighbour, Neighbours, words_of
from controller.core.peaks import STEP_MIN, Atom, Ladder, Peaks, Prices, ladder_over
from controller.core.sizes import (
    GIB,
    MIB,
    SIZE_MIN_BYTES,
    UNMEASURED,
    Ask,
    Basis,
    CategorySummary,
    Size,
    SizingLimits,
)

__all__ = [
    "GIB", "MIB", "UNMEASURED", "Ask", "Basis", "CategorySummary", "Peaks", "Size", "Sizing",
    "SizingLimits",
]  # fmt: skip

RUNTIME_MIN_NS = 1_000_000
# Sizes of a category are made anew with each of its first 24 successes, then when one run in so
# many is new.
NEWS_SHARE = 12
DECLARED_MAX = 64  # declarations kept of a category
LADDERS_MAX = 256  # kept of a category, and 16 times that of all categories without a run
# What ends first is short and small: so many of the longest runs at this share of the default are
# taken to have ended as well, when it is asked what a task holds on average.
EARLY_RUNS = 3.0
EARLY_SHARE = 0.5
# What nobody measured, a declaration or the default, is taken to be so many times the use: the
# least of those that declare too much.
UNMEASURED_OVER = 3.0
DOUBLINGS = 20  # of a size of which nothing is known
PILOT_SPREAD = 0.3
PILOT_GROWTH = (1.2, 3.0)  # what a running sibling may still grow by


@dataclass(slots=True)
class _Category:
    history: History
    words: frozenset[str]
    version: int = 0  # of all changes, the last one of its own that may make another size
    news_at: int = 0  # runs seen at which the next success is one
    out_of_memory: int = 0
    reached: list[tuple[float, float]] = field(default_factory=list)  # log bytes, log input
    live: dict[int, int] = field(default_factory=dict)  # by log2 of the time: most used
    over: list[float] = field(default_factory=list)  # log declared / peak, the newest
    declared: int | None = None
    fit: Fit | None = None


@dataclass(frozen=True, slots=True)
class _Outlook:
    """What a task's peak may be: a ladder in units of the scales, and where it is from."""

    ladder: Ladder
    scale_bytes: float
    scale_ns: float
    basis: Basis
    told: str

    def first(self) -> float:
        return self.ladder.first() * self.scale_bytes

    def after(self, reached: float) -> float:
        return self.ladder.after(reached / self.scale_bytes) * self.scale_bytes


class Sizing:
    """All that is learned, and the sizes that follow from it. Pure, and bounded by its limits."""

    def __init__(self, limits: SizingLimits | None = None) -> None:
        self.limits = limits or SizingLimits()
        self._categories: dict[str, _Category] = {}  # the one longest without news first
        self._shared = SharedErrors(self.limits.errors_max)
        self._neighbours: Neighbours | None = None
        self._observed = 0  # successes
        self._changes = 0  # of anything
        self._firsts = 0  # categories that had their first one
        self._others_at = 0  # the last change of what a category without one borrows
        self._held = 0.0  # bytes x ns of all runs
        self._longest_ns = 0
        self._ran_ns = 0.0

    # ------------------------------------------------------------ what happened
    def observe(self, ask: Ask, peak_bytes: int, runtime_ns: int) -> None:
        """Learn from a task that succeeded."""
        category = self._touch(ask.category)
        history = category.history
        runtime_ns = max(runtime_ns, RUNTIME_MIN_NS)
        log_peak, log_runtime = math.log(max(peak_bytes, 1)), math.log(runtime_ns)
        log_input = _log_input(ask)
        is_news = log_peak > history.top or history.seen + 1 >= category.news_at
        guesses = history.guesses(log_input)
        if history.count:
            self._shared.learn(history, log_peak, log_runtime, guesses)
        history.add(log_peak, log_runtime, log_input, guesses)
        if ask.declared_bytes:
            if len(category.over) >= DECLARED_MAX:
                del category.over[: DECLARED_MAX // 4]
            category.over.append(math.log(ask.declared_bytes) - log_peak)
            category.declared = ask.declared_bytes
        for index, (reached, of_input) in enumerate(category.reached):
            if reached < log_peak and (of_input == log_input or math.isnan(of_input)):
                del category.reached[index]
                is_news = True
                if category.fit is not None:
                    category.fit.ladders.clear()
                break
        category.live.clear()
        if is_news:
            category.version = self._changed()
            category.news_at = history.seen + max(1, history.seen // NEWS_SHARE)
        self._held += peak_bytes * runtime_ns
        self._ran_ns += runtime_ns
        self._longest_ns = max(self._longest_ns, runtime_ns)
        self._observed += 1
        self._firsts += history.seen == 1
        known = self._neighbours
        if known is None or known.is_old(self._observed, self._firsts):
            self._neighbours = None
            self._others_at = self._changed()

    def observe_out_of_memory(self, ask: Ask, reached_bytes: int) -> None:
        """Learn that a task needs more than it reached."""
        category = self._touch(ask.category)
        category.out_of_memory += 1
        category.version = self._changed()
        if len(category.reached) >= self.limits.pending_max:
            del category.reached[0]
        category.reached.append((math.log(max(reached_bytes, 1)), _log_input(ask)))
        if category.fit is not None:
            category.fit.ladders.clear()

    def observe_live(self, ask: Ask, used_bytes: int, elapsed_ns: int) -> None:
        """Learn what a running task uses now; cheap, and forgotten at the first success."""
        category = self._categories.get(ask.category) or self._touch(ask.category)
        if category.history.count:
            return
        bucket = max(elapsed_ns, 1).bit_length()
        before = category.live.get(bucket, 0)
        if used_bytes > before:
            category.live[bucket] = used_bytes
            if used_bytes > 1.1 * before:
                category.version = self._changed()

    # ------------------------------------------------------------ what follows
    def size(self, ask: Ask, memory_max_bytes: int, once: bool = False) -> Size:
        """Return the size of a first attempt, within 1 MiB and `memory_max_bytes`.

        `once`: there is no second one, so of what nobody measured all is given at once.
        """
        found = self._outlook(ask) or self._unknown(ask)
        told, category = found.told, self._categories.get(ask.category)
        chosen, why = found.first(), "expected to cost least"
        if found.basis in UNMEASURED and once:
            chosen, why = found.scale_bytes, "given at once, as it must not run again"
        elif found.basis in UNMEASURED:
            chosen, why = found.scale_bytes / UNMEASURED_OVER, "tried first"
        if category is not None and category.reached and not category.history.count:
            most = math.exp(max(reached for reached, _ in category.reached))
            if chosen <= most:
                chosen = found.after(most)
                told = f"{told}; one of {ask.category} ran out of memory at {size_words(most)}"
        told = f"{told}; {size_words(max(chosen, SIZE_MIN_BYTES))} is {why}"
        if chosen > memory_max_bytes:
            given = size_words(memory_max_bytes)
            told = f"{told}, but no node could lately give more than {given}"
        return _sized(chosen, memory_max_bytes, found.basis, told)

    def size_after_out_of_memory(
        self, ask: Ask, reached_bytes: int, failures: int, memory_max_bytes: int
    ) -> Size:
        """Return the size of the attempt after one that ran out of memory at `reached_bytes`."""
        found = self._outlook(ask) or self._unknown(ask)
        chosen = found.after(reached_bytes)
        reached = f"ran out of memory at {size_words(reached_bytes)} (failure {failures})"
        told = f"{reached}; {found.told}"
        return _sized(chosen, memory_max_bytes, Basis.LADDER, told)

    def peaks(self, ask: Ask) -> Peaks | None:
        """Return what the task's peak may be; None where its category has no run yet."""
        category = self._categories.get(ask.category)
        if category is None or not category.history.count:
            return None
        found = self._known(ask, category)
        return found.ladder.distribution(found.scale_bytes, found.scale_ns)

    def believed_bytes(self, ask: Ask) -> int:
        """Return what a task is taken to need while nothing is learned: what was declared, or the
        default."""
        return ask.declared_bytes or self.limits.default_bytes

    def version(self, category: str) -> int:
        """Return a number that rises when a size of the category may be another.

        With each success of one with few runs, with a new largest peak, and with news of those
        that run or ran out of memory; beyond that the sizes of many runs are kept for a while, and
        so are those of one without a run until the others have grown by a twentieth.
        """
        kept = self._categories.get(category)
        if kept is not None and kept.history.count:
            return kept.version
        return max(self._others_at, kept.version if kept is not None else 0)

    def categories(self) -> Iterator[CategorySummary]:
        """Yield what was learned of each category with a run, by name."""
        for name in sorted(self._categories):
            kept = self._categories[name]
            if not kept.history.count:
                continue
            peaks = np.exp(kept.history.column(LOG_PEAK))
            over = math.exp(float(np.median(kept.over))) if kept.over else None
            yield CategorySummary(
                category=name,
                runs=kept.history.seen,
                out_of_memory=kept.out_of_memory,
                peak_median_bytes=round(float(np.median(peaks))),
                peak_p95_bytes=round(float(np.quantile(peaks, 0.95))),
                peak_max_bytes=round(float(peaks.max())),
                declared_bytes=kept.declared,
                over_declared=over,
            )

    # ------------------------------------------------------------ inside
    def _changed(self) -> int:
        self._changes += 1
        return self._changes

    def _average(self) -> float:
        """Return what an hour of a task holds on average, in bytes."""
        believed = EARLY_RUNS * self._longest_ns
        held = self._held + believed * self.limits.default_bytes * EARLY_SHARE
        return held / (self._ran_ns + believed)

    def _touch(self, name: str) -> _Category:
        """Return a category as the one last heard of, made if new; bounded."""
        kept = self._categories.pop(name, None)
        if kept is None:
            if len(self._categories) >= self.limits.categories_max:
                del self._categories[next(iter(self._categories))]
            kept = _Category(History(self.limits.runs_max), words_of(name))
        self._categories[name] = kept
        return kept

    def _prices(self) -> Prices:
        """Return what is paid for a failure now, in bytes and nanoseconds."""
        lost_bytes = self.limits.lost_price * self._average()
        return Prices(lost_bytes, self.limits.failure_price * self._ran_ns / self._observed)

    def _outlook(self, ask: Ask) -> _Outlook | None:
        category = self._categories.get(ask.category)
        if category is not None:
            if category.history.count:
                return self._known(ask, category)
            if category.live:
                return self._pilot(ask, category)
        return self._borrowed(ask)

    def _known(self, ask: Ask, category: _Category) -> _Outlook:
        history, log_input = category.history, _log_input(ask)
        current = category.fit
        if current is None or history.seen >= current.valid_until:
            prices = self._prices()
            current = category.fit = fit(history, self._shared, self.limits.doubt, prices)
        guess = current.follow(log_input)
        value = history.guess(guess, log_input)
        # Sizes are the same in steps of a tenth of what a lost hour is worth beside the guess.
        step = round(10 * (math.log(current.prices.lost_bytes) - value))
        key = (guess, step, 0 if math.isnan(log_input) else round(10 * log_input))
        scale_ns = math.exp(current.usual)
        ladder = current.ladders.get(key)
        if ladder is None:
            atoms = current.atoms(guess, log_input)
            prices = current.prices.beside(math.exp(value), scale_ns)
            ladder = ladder_over(atoms, prices)
            for reached, _ in category.reached:
                # With more beyond its reach a smaller size can cost less: not after running out.
                least = ladder.first()
                atoms = _censored(atoms, reached - value)
                ladder = ladder_over(atoms, prices, least)
            if len(current.ladders) >= LADDERS_MAX:
                current.ladders.clear()
            current.ladders[key] = ladder
        count = history.seen
        told = f"{count} {'run' if count == 1 else 'runs'} of {ask.category}"
        told = f"{told}, the largest of {size_words(math.exp(history.top))}"
        basis = Basis.CATEGORY
        if guess >= Guess.PROPORTIONAL:
            basis = Basis.INPUT
            told = (
                f"{told}; for an input of {size_words(ask.input_bytes or 0)}"
                f" about {size_words(math.exp(value))}"
            )
        return _Outlook(ladder, math.exp(value), scale_ns, basis, told)

    def _pilot(self, ask: Ask, category: _Category) -> _Outlook:
        used = max(category.live.values())
        last = max(category.live)
        before = max((most for at, most in category.live.items() if at < last), default=0)
        least, most = PILOT_GROWTH
        growth = min(max(used / before if before else most, least), most)
        centre = math.log(growth)
        atoms = [(max(centre + PILOT_SPREAD * shape, 0.0), 1.0, 0.0) for shape in PRIOR_SHAPE]
        told = (
            f"no run of {ask.category} has ended; one has used {size_words(used)} so far"
            f" and may still grow {growth:.1f}-fold"
        )
        lost_bytes = self.limits.lost_price * (self._average() if self._observed else used)
        ladder = ladder_over(atoms, Prices(lost_bytes / used, 0.0))
        return _Outlook(ladder, used, 1.0, Basis.PILOT, told)

    def _borrowed(self, ask: Ask) -> _Outlook | None:
        if not self._observed:
            return None
        known = self._neighbours
        if known is None:
            known = self._neighbours = self._gather()
        if not known.count:
            return None
        words = known.words_that_tell(ask.category)
        key = (words, ask.declared_bytes)
        if key not in known.ladders:
            if len(known.ladders) >= 16 * LADDERS_MAX:
                known.ladders.clear()
            atoms = known.atoms(*key, self.believed_bytes(ask) / UNMEASURED_OVER)
            known.ladders[key] = ladder_over(atoms, self._prices())
        ladder = known.ladders[key]
        low, high = ladder.within()
        base = size_words(self.believed_bytes(ask))
        told = (
            f"no run of {ask.category} yet; by {known.count} other"
            f" {'category' if known.count == 1 else 'categories'} and a third of {base}"
            f" it may need {size_words(low)} to {size_words(high)}"
        )
        return _Outlook(ladder, 1.0, 1.0, Basis.BORROWED, told)

    def _gather(self) -> Neighbours:
        return Neighbours(
            (
                Neighbour(
                    kept.words,
                    *kept.history.centre(),
                    float(np.median(kept.over)) if kept.over else math.nan,
                )
                for kept in self._categories.values()
                if kept.history.count
            ),
            self._observed,
            self._firsts,
        )

    def _unknown(self, ask: Ask) -> _Outlook:
        """Return what is believed before anything is learned."""
        base = self.believed_bytes(ask)
        # It doubles: no step has more to speak for it.
        atoms: list[Atom] = [(math.log(2.0) * step, 0.5**step, 0.0) for step in range(DOUBLINGS)]
        ladder = ladder_over(atoms, Prices(0.0, 0.0))
        if ask.declared_bytes:
            basis, said = Basis.DECLARED, f"declared {size_words(base)}"
        else:
            basis, said = Basis.DEFAULT, f"nothing is declared (taken as {size_words(base)})"
        return _Outlook(ladder, base, 1.0, basis, f"{said} and nothing is learned yet")


def _censored(atoms: Floats, reached: float) -> Floats:
    """Return the atoms with one run more, spread over those beyond what it reached."""
    beyond = atoms[:, 0] > reached
    total = float(atoms[beyond, 1].sum())
    if total > 0:
        # Heavier, not more of them: ends out of memory come in bursts.
        heavier = atoms.copy()
        heavier[beyond, 1] *= 1 + 1 / total
        return heavier
    return np.vstack((atoms, (reached + math.log(STEP_MIN), 1.0, 0.0)))


def _log_input(ask: Ask) -> float:
    return math.log(ask.input_bytes) if ask.input_bytes else math.nan


def _sized(memory_bytes: float, memory_max_bytes: int, basis: Basis, told: str) -> Size:
    size = max(SIZE_MIN_BYTES, math.ceil(min(memory_bytes, memory_max_bytes)))
    return Size(size, basis, told)

"""How much memory a task gets, learned from the runs of its category and of the others.

A size is chosen by expected cost over what the peak may be (peaks.py), which a category's guesses
and their past errors say (guesses.py). Errors are shared: what the first, second ... runs of other
categories did to guesses tells how wide to size a category of which as little is known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from controller.core.guesses import LOG_PEAK, LOG_RUNTIME, Floats, Guess, History
from controller.core.peaks import Ladder, Peaks, Prices, thinned

MIB = 1 << 20
GIB = 1 << 30
SIZE_MIN_BYTES = MIB
RUNTIME_MIN_NS = 1_000_000


class Basis(Enum):
    """From what a size was taken."""

    DEFAULT = "default"
    DECLARED = "declared"
    BORROWED = "borrowed"  # other categories
    CATEGORY = "category"
    INPUT = "input"
    LADDER = "ladder"  # after running out of memory
    PILOT = "pilot"  # a running sibling


@dataclass(frozen=True, slots=True)
class Ask:
    """What is known of a task before it runs; None is unknown, or nothing declared."""

    category: str
    input_bytes: int | None = None
    declared_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Size:
    """A size and why: one sentence with its numbers."""

    memory_bytes: int
    basis: Basis
    reason: str


@dataclass(frozen=True, slots=True)
class SizingLimits:
    """What is kept at most, and the prices sizes are chosen by."""

    categories_max: int = 2_000  # beyond it the one longest without a run is forgotten
    runs_max: int = 256  # of one category; the oldest fifth makes room
    errors_max: int = 128  # of other categories, of each guess at each stage
    pending_max: int = 16  # ends out of memory that no success has answered yet, of a category
    default_bytes: int = GIB
    lost_price: float = 2.0  # an hour lost costs as much as this many hours of an average task
    failure_price: float = 0.3  # beside it, each failure, in runtimes of an average task
    doubt: float = 1.5  # runs that the experience with other categories counts for


@dataclass(frozen=True, slots=True)
class CategorySummary:
    """What was learned of a category, for people."""

    category: str
    runs: int
    out_of_memory: int
    peak_median_bytes: int
    peak_p95_bytes: int
    peak_max_bytes: int
    declared_median_bytes: int | None
    over_declared: float | None  # median of declared / peak


# Stages of knowledge: by the runs known, from which count on.
STAGES = (1, 2, 3, 5, 9, 17)
# What is believed of errors before any are seen: this shape, times a spread by stage.
PRIOR_SHAPE = (-1.2, -0.6, -0.2, 0.0, 0.2, 0.5, 1.0, 1.8, 3.0)
PRIOR_SPREAD = (0.3, 0.25, 0.25, 0.2, 0.2, 0.15)
COLD_SPREAD = 1.0
TAIL_FACTORS = (0.2, 0.5, 1.0, 1.6)  # log; beyond all that is known
LIKE_NAME = 20.0  # how much more a category of the same name's words counts

Atom = tuple[float, float, float]  # log peak, weight, log runtime


class _Errors:
    """The newest errors of one guess at one stage over all categories."""

    __slots__ = ("atoms",)

    def __init__(self) -> None:
        self.atoms: list[tuple[float, float]] = []  # error, log runtime / usual

    def add(self, error: float, runtime: float, most: int) -> None:
        if len(self.atoms) >= most:
            del self.atoms[: most // 4 + 1]
        self.atoms.append((error, runtime))


@dataclass(slots=True)
class _Category:
    history: History
    words: frozenset[str]
    version: int = 0
    out_of_memory: int = 0
    reached: list[tuple[float, float]] = field(default_factory=list)  # log bytes, log input
    live: dict[int, int] = field(default_factory=dict)  # log2 of elapsed: most used
    over: list[float] = field(default_factory=list)  # log declared / peak, the newest
    declared: int | None = None
    fit: _Fit | None = None
    fit_until: int = 0


@dataclass(slots=True)
class _Fit:
    """What a category's history says, until it has grown by a few per cent."""

    order: list[Guess]  # best first
    spread: dict[Guess, float]
    atoms: dict[Guess, list[Atom]]  # of errors, runtime relative to the centre's
    ladders: dict[tuple[object, ...], Ladder] = field(default_factory=dict)


def stage_of(runs: int) -> int:
    """Return the index in STAGES of so many known runs, at least 1."""
    return sum(runs >= least for least in STAGES) - 1


class Sizing:
    """All that is learned, and the sizes that follow from it. Pure, and bounded by its limits."""

    def __init__(self, limits: SizingLimits | None = None) -> None:
        self.limits = limits or SizingLimits()
        self._categories: dict[str, _Category] = {}
        self._errors = [[_Errors() for _ in Guess] for _ in STAGES]
        self._held = 0.0  # bytes x ns, and ns, of all runs, fading
        self._ran_ns = 0.0
        self._runs = 0.0
        self._cold: _Cold | None = None
        self._observed = 0

    # ------------------------------------------------------------ what happened
    def observe(self, ask: Ask, peak_bytes: int, runtime_ns: int) -> None:
        """Learn from a task that succeeded."""
        category = self._touch(ask.category)
        history = category.history
        log_peak = math.log(max(peak_bytes, 1))
        log_runtime = math.log(max(runtime_ns, RUNTIME_MIN_NS))
        log_input = _log_input(ask)
        if history.count:
            self._learn_errors(history, log_peak, log_runtime, log_input)
        history.add(log_peak, log_runtime, log_input)
        if ask.declared_bytes:
            if len(category.over) >= 64:
                del category.over[:16]
            category.over.append(math.log(ask.declared_bytes) - log_peak)
            category.declared = ask.declared_bytes
        for index, (reached, of_input) in enumerate(category.reached):
            if reached < log_peak and (of_input == log_input or math.isnan(of_input)):
                del category.reached[index]
                break
        category.live.clear()
        category.version += 1
        self._held += peak_bytes * max(runtime_ns, RUNTIME_MIN_NS)
        self._ran_ns += max(runtime_ns, RUNTIME_MIN_NS)
        self._runs += 1
        self._observed += 1
        if self._cold is not None and (
            history.seen == 1 or self._observed >= self._cold.until
        ):
            self._cold = None

    def observe_out_of_memory(self, ask: Ask, reached_bytes: int) -> None:
        """Learn that a task needs more than it reached."""
        category = self._touch(ask.category)
        category.out_of_memory += 1
        category.version += 1
        if len(category.reached) >= self.limits.pending_max:
            del category.reached[0]
        category.reached.append((math.log(max(reached_bytes, 1)), _log_input(ask)))

    def observe_live(self, ask: Ask, used_bytes: int, elapsed_ns: int) -> None:
        """Learn what a running task uses now; cheap, and forgotten at the first success."""
        category = self._categories.get(ask.category)
        if category is None:
            category = self._touch(ask.category)
        bucket = max(elapsed_ns, 1).bit_length()
        before = category.live.get(bucket, 0)
        if used_bytes > before:
            category.live[bucket] = used_bytes
            if used_bytes > 1.1 * before and not category.history.count:
                category.version += 1

    # ------------------------------------------------------------ what follows
    def size(self, ask: Ask, memory_max_bytes: int) -> Size:
        """Return the size of a first attempt, within 1 MiB and `memory_max_bytes`."""
        found = self._distribution(ask)
        if found is None:
            if ask.declared_bytes:
                return _sized(
                    ask.declared_bytes, memory_max_bytes, Basis.DECLARED, "nothing is learned yet"
                )
            return _sized(
                self.limits.default_bytes, memory_max_bytes, Basis.DEFAULT,
                "nothing is declared and nothing is learned yet",
            )  # fmt: skip
        ladder, basis, told = found
        chosen = ladder.first()
        category = self._categories.get(ask.category)
        if category is not None and category.reached and not category.history.count:
            most = math.exp(max(reached for reached, _ in category.reached))
            if chosen <= most:
                chosen = ladder.after(most)
        return _sized(math.ceil(chosen), memory_max_bytes, basis, told)

    def size_after_out_of_memory(
        self, ask: Ask, reached_bytes: int, failures: int, memory_max_bytes: int
    ) -> Size:
        """Return the size of the attempt after one that ran out of memory at `reached_bytes`."""
        found = self._distribution(ask)
        if found is None:
            base = ask.declared_bytes or self.limits.default_bytes
            ladder = self._ladder([(math.log(base), 1.0, 0.0)], COLD_SPREAD)
            told = "nothing is learned yet"
        else:
            ladder, _, told = found
        chosen = ladder.after(reached_bytes)
        return _sized(math.ceil(chosen), memory_max_bytes, Basis.LADDER, told)

    def peaks(self, ask: Ask) -> Peaks | None:
        """Return what the task's peak may be; None where nothing is known of its category."""
        category = self._categories.get(ask.category)
        found = self._distribution(ask)
        if found is None or category is None or not category.history.count:
            return None
        return found[0].distribution()

    def version(self, category: str) -> int:
        """Return a number that rises when a size of the category may be another."""
        kept = self._categories.get(category)
        if kept is None:
            return self._observed
        return kept.version + (0 if kept.history.count else self._observed)

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
                declared_median_bytes=kept.declared,
                over_declared=over,
            )

    # ------------------------------------------------------------ inside
    def _touch(self, name: str) -> _Category:
        """Return a category as the one last heard of, made if new; bounded."""
        kept = self._categories.pop(name, None)
        if kept is None:
            if len(self._categories) >= self.limits.categories_max:
                del self._categories[next(iter(self._categories))]
                self._cold = None
            kept = _Category(History(self.limits.runs_max), words_of(name))
        self._categories[name] = kept
        return kept

    def _learn_errors(
        self, history: History, log_peak: float, log_runtime: float, log_input: float
    ) -> None:
        errors = self._errors[stage_of(history.count)]
        usual = history.centre()[1]
        for guess, value in zip(Guess, history.guesses(log_input), strict=True):
            if not math.isnan(value):
                errors[guess].add(log_peak - value, log_runtime - usual, self.limits.errors_max)

    def _prices(self, log_peak: float) -> Prices:
        if not self._ran_ns:
            return Prices(self.limits.lost_price * math.exp(log_peak), 0.0)
        return Prices(
            self.limits.lost_price * self._held / self._ran_ns,
            self.limits.failure_price * self._ran_ns / self._runs,
        )

    def _distribution(self, ask: Ask) -> tuple[Ladder, Basis, str] | None:
        category = self._categories.get(ask.category)
        if category is None or not category.history.count:
            if category is not None and category.live:
                return self._pilot(category)
            return self._borrowed(ask)
        fit = self._fit(category)
        history = category.history
        log_input = _log_input(ask)
        guess = next(
            one for one in fit.order if not math.isnan(log_input) or one < Guess.PROPORTIONAL
        )
        value = history.guess(guess, log_input)
        if math.isnan(value):
            guess = Guess.CENTRE
            value = history.guess(guess, log_input)
        key = (guess, round(value * 50), tuple(category.reached))
        ladder = fit.ladders.get(key)
        if ladder is None:
            usual = history.centre()[1]
            atoms = [(value + e, w, usual + t) for e, w, t in fit.atoms[guess]]
            ladder = self._ladder(_censored(atoms, category.reached), 0.0)
            if len(fit.ladders) > 64:
                fit.ladders.clear()
            fit.ladders[key] = ladder
        basis = Basis.INPUT if guess >= Guess.PROPORTIONAL else Basis.CATEGORY
        return ladder, basis, f"{history.seen} runs, {guess.name}"

    def _fit(self, category: _Category) -> _Fit:
        history = category.history
        if category.fit is not None and history.seen < category.fit_until:
            return category.fit
        stage = stage_of(history.count)
        doubt = self.limits.doubt
        usual = history.centre()[1]
        runtimes = history.column(LOG_RUNTIME) - usual
        spread: dict[Guess, float] = {}
        atoms: dict[Guess, list[Atom]] = {}
        for guess in Guess:
            own = history.errors(guess)
            if guess is Guess.CENTRE:
                honest = own[~np.isnan(own)]
                own = history.column(LOG_PEAK) - history.centre()[0]
            else:
                honest = own[~np.isnan(own)]
            known = ~np.isnan(own)
            if guess >= Guess.PROPORTIONAL and not known.any() and history.count > 1:
                continue
            pool = self._errors[stage][guess].atoms
            prior = [(s * PRIOR_SPREAD[stage], 0.0) for s in PRIOR_SHAPE]
            pairs = zip(own[known].tolist(), runtimes[known].tolist(), strict=True)
            made = [(e, 1.0, t) for e, t in pairs]
            share = len(pool) / (len(pool) + 4.0)
            made += [(e, doubt * share / len(pool), t) for e, t in pool]
            made += [(e, doubt * (1 - share) / len(prior), t) for e, t in prior]
            top = max(e for e, _, _ in made) if not len(honest) else float(own[known].max())
            tail = 0.5
            made += [(max(top, 0.0) + f, tail / len(TAIL_FACTORS), 0.0) for f in TAIL_FACTORS]
            atoms[guess] = made
            pooled = sum(min(abs(e), 2.0) for e, _ in pool) + 4 * PRIOR_SPREAD[stage]
            pooled /= len(pool) + 4
            # a guess by input must earn its place
            if guess >= Guess.PROPORTIONAL:
                pooled *= 1.1
            near = honest[-64:]
            missed = float(np.minimum(np.abs(near), 2.0).sum())
            spread[guess] = (missed + 2 * pooled) / (len(near) + 2)
        order = sorted(spread, key=lambda guess: (spread[guess], guess))
        category.fit = _Fit(order, spread, atoms)
        category.fit_until = history.seen + max(1, history.count // 25)
        return category.fit

    def _ladder(self, atoms: list[Atom], spread: float) -> Ladder:
        if spread:
            atoms = [
                (peak + spread * s, weight / len(PRIOR_SHAPE), runtime)
                for peak, weight, runtime in atoms
                for s in PRIOR_SHAPE
            ]
        whole = [
            (math.exp(min(peak, 50.0)), weight, math.exp(min(runtime, 50.0)))
            for peak, weight, runtime in atoms
        ]
        peaks, weights, runtimes = thinned(whole)
        return Ladder(peaks, weights, runtimes, self._prices(atoms[0][0]))

    def _pilot(self, category: _Category) -> tuple[Ladder, Basis, str]:
        used = max(category.live.values())
        last = max(category.live)
        before = max((u for b, u in category.live.items() if b < last), default=0)
        factor = min(max(used / before if before else 3.0, 1.2), 3.0)
        centre = math.log(used * factor)
        atoms = [(max(centre + 0.3 * s, math.log(used)), 1.0, 0.0) for s in PRIOR_SHAPE]
        told = f"a running sibling uses {used / MIB:.0f} MiB"
        return self._ladder(atoms, 0.0), Basis.PILOT, told

    def _borrowed(self, ask: Ask) -> tuple[Ladder, Basis, str] | None:
        if self._cold is None:
            self._cold = _Cold.of(self._categories, self._observed)
        cold = self._cold
        if not len(cold.peaks):
            return None
        key = (ask.category, ask.declared_bytes)
        ladder = cold.ladders.get(key)
        if ladder is None:
            ladder = self._ladder(cold.atoms(words_of(ask.category), ask.declared_bytes), 0.0)
            if len(cold.ladders) > 4_000:
                cold.ladders.clear()
            cold.ladders[key] = ladder
        return ladder, Basis.BORROWED, f"{len(cold.peaks)} other categories"


class _Cold:
    """What all categories together say of one without a run; as of one moment."""

    def __init__(
        self, peaks: Floats, runtimes: Floats, over: Floats, words: list[frozenset[str]], until: int
    ) -> None:
        self.peaks, self.runtimes, self.over = peaks, runtimes, over
        self.until = until
        self.ladders: dict[tuple[str, int | None], Ladder] = {}
        self.words: dict[str, list[int]] = {}
        self.lengths = np.array([max(len(of), 1) for of in words], dtype=float)
        for index, of in enumerate(words):
            for word in of:
                self.words.setdefault(word, []).append(index)

    @classmethod
    def of(cls, categories: dict[str, _Category], observed: int) -> _Cold:
        known = [kept for kept in categories.values() if kept.history.count]
        centres = [kept.history.centre() for kept in known]
        return cls(
            np.array([peak for peak, _ in centres]),
            np.array([runtime for _, runtime in centres]),
            np.array([float(np.median(kept.over)) if kept.over else math.nan for kept in known]),
            [kept.words for kept in known],
            observed + max(1, observed // 20),
        )

    def atoms(self, words: frozenset[str], declared: int | None) -> list[Atom]:
        shared = np.zeros(len(self.peaks))
        for word in sorted(words):
            shared[self.words.get(word, [])] += 1.0
        likeness = shared / (self.lengths + len(words) - shared)
        weights = 1.0 + LIKE_NAME * likeness**2
        weights /= weights.sum()
        guesses = [(self.peaks, weights, self.runtimes)]
        if declared:
            known = ~np.isnan(self.over)
            if known.any():
                of = weights[known] / weights[known].sum()
                guesses.append((math.log(declared) - self.over[known], of, self.runtimes[known]))
        made: list[Atom] = []
        for peaks, of, runtimes in guesses:
            n = len(peaks)
            for peak, weight, runtime in zip(
                peaks.tolist(), of.tolist(), runtimes.tolist(), strict=True
            ):
                for e in (-0.2, 0.0, 0.2):
                    made.append((peak + e, weight / 3 / len(guesses), runtime))
            centre = float(of @ peaks)
            usual = float(of @ runtimes)
            for s in PRIOR_SHAPE:
                w = 1.5 / (n + 1.5) / len(PRIOR_SHAPE) / len(guesses)
                made.append((centre + COLD_SPREAD * s, w, usual))
        return made


def words_of(name: str) -> frozenset[str]:
    """Return the words of a category's name, in lower case."""
    return frozenset(re.findall(r"[a-z]+|[0-9]+", name.lower()))


def _censored(atoms: list[Atom], reached: list[tuple[float, float]]) -> list[Atom]:
    """Return the atoms and, for each end out of memory, one more spread over those beyond it."""
    made = list(atoms)
    for least, _ in reached:
        beyond = [atom for atom in atoms if atom[0] > least]
        total = sum(atom[1] for atom in beyond)
        if total <= 0:
            made.append((least + 0.5, 1.0, atoms[0][2]))
        else:
            made += [(p, w / total, t) for p, w, t in beyond]
    return made


def _log_input(ask: Ask) -> float:
    return math.log(ask.input_bytes) if ask.input_bytes else math.nan


def _sized(memory_bytes: int, memory_max_bytes: int, basis: Basis, told: str) -> Size:
    size = max(SIZE_MIN_BYTES, min(memory_bytes, memory_max_bytes))
    return Size(size, basis, told)

"""Seeded workloads for the memory simulator: profiles of use over time, and what people declare.

Several families, so that no constant is tuned to one of them. A profile is linear ramps from 0;
sizes in MiB, times in seconds. Declarations depend on the mode only, profiles never do.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

# How people declare, by mode: the share that is wrong, and what a wrong and a right one declare,
# as a factor of the true peak.
MODES = ("over", "under", "under50", "none", "exact")
DECLARED_MIB_MAX = 3_400  # so that every task can be placed on its own

Ramps = tuple[tuple[float, float], ...]  # (seconds, MiB at their end)


@dataclass(frozen=True, slots=True)
class Work:
    """One task of a workload."""

    task_id: int
    category: str
    ramps: Ramps
    declared_mib: float | None

    @property
    def seconds(self) -> float:
        """How long it runs undisturbed."""
        return sum(seconds for seconds, _ in self.ramps)

    @property
    def peak_mib(self) -> float:
        """The most it uses."""
        return max(size for _, size in self.ramps)


def _shaped(peak: float, seconds: float, shape: Ramps) -> Ramps:
    return tuple((round(seconds * a, 2), round(peak * b)) for a, b in shape)


Kind = tuple[str, float, float, float, float, Ramps]  # category, MiB from-to, seconds from-to

YARDSTICK: tuple[Kind, ...] = (
    ("etl", 100, 300, 2.0, 3.0, ((0.8, 1.0), (0.2, 1.0))),
    ("train", 300, 700, 2.0, 4.0, ((0.3, 1.0), (0.7, 1.0))),
    ("join", 600, 1100, 2.5, 5.0, ((0.6, 0.35), (0.3, 1.0), (0.1, 1.0))),
    ("assemble", 900, 1500, 3.0, 8.0, ((0.7, 1.0), (0.2, 1.0), (0.1, 0.4))),
)
PLATEAUS: tuple[Kind, ...] = (
    ("small", 80, 240, 1.5, 4.0, ((0.1, 1.0), (0.9, 1.0))),
    ("middle", 300, 800, 2.0, 6.0, ((0.15, 1.0), (0.85, 1.0))),
    ("large", 900, 1600, 3.0, 8.0, ((0.2, 1.0), (0.8, 1.0))),
)
SAWTEETH: tuple[Kind, ...] = (
    ("saw", 400, 1000, 3.0, 6.0, tuple((0.125, 1.0 if i % 2 == 0 else 0.3) for i in range(8))),
    ("gentle", 200, 500, 2.0, 4.0, tuple((0.25, 1.0 if i % 2 == 0 else 0.6) for i in range(4))),
    ("steps", 500, 1400, 3.0, 7.0, tuple((0.1, (1 + i // 2) / 5) for i in range(10))),
)
SPIKES: tuple[Kind, ...] = (
    ("late", 600, 1500, 3.0, 6.0, ((0.1, 0.2), (0.7, 0.25), (0.1, 1.0), (0.1, 0.3))),
    ("early", 600, 1400, 3.0, 6.0, ((0.15, 1.0), (0.1, 0.2), (0.75, 0.2))),
    ("flat", 150, 400, 2.0, 5.0, ((0.1, 1.0), (0.9, 1.0))),
)
LENGTHS: tuple[Kind, ...] = (
    ("short", 100, 600, 0.5, 1.5, ((0.5, 1.0), (0.5, 1.0))),
    ("short2", 200, 900, 0.7, 2.0, ((0.9, 1.0), (0.1, 1.0))),
    ("long", 500, 1200, 8.0, 16.0, ((0.5, 0.6), (0.4, 1.0), (0.1, 1.0))),
)
BURST: tuple[Kind, ...] = (("only", 500, 1300, 2.5, 5.0, ((0.7, 1.0), (0.3, 1.0))),)


def _from_kinds(kinds: tuple[Kind, ...]) -> Callable[[random.Random, int], list[tuple[str, Ramps]]]:
    def make(draw: random.Random, count: int) -> list[tuple[str, Ramps]]:
        made = []
        for index in range(count):
            name, low, high, fast, slow, shape = kinds[index % len(kinds)]
            peak = draw.uniform(low, high)
            made.append((name, _shaped(peak, draw.uniform(fast, slow), shape)))
        draw.shuffle(made)
        return made

    return make


def _heavy_tails(draw: random.Random, count: int) -> list[tuple[str, Ramps]]:
    """Peaks of a category spread over a factor of ten and more: what was learned helps little."""
    made = []
    for index in range(count):
        shape: Ramps = ((0.6, 1.0), (0.4, 1.0)) if index % 2 else ((0.3, 0.4), (0.5, 1.0), (0.2, 1))
        peak = min(2_800.0, 120 * draw.paretovariate(0.9))
        made.append((f"tail{index % 2}", _shaped(peak, draw.uniform(1.5, 6.0), shape)))
    draw.shuffle(made)
    return made


def _no_categories(draw: random.Random, count: int) -> list[tuple[str, Ramps]]:
    """The yardstick's tasks, every one under its own name: nothing can be learned by category."""
    made = _from_kinds(YARDSTICK)(draw, count)
    return [(f"{name}-{index}", ramps) for index, (name, ramps) in enumerate(made)]


FAMILIES: dict[str, Callable[[random.Random, int], list[tuple[str, Ramps]]]] = {
    "yardstick": _from_kinds(YARDSTICK),
    "plateaus": _from_kinds(PLATEAUS),
    "sawteeth": _from_kinds(SAWTEETH),
    "spikes": _from_kinds(SPIKES),
    "lengths": _from_kinds(LENGTHS),
    "burst": _from_kinds(BURST),
    "tails": _heavy_tails,
    "strangers": _no_categories,
}


def make(family: str, mode: str, seed: int, count: int = 60) -> list[Work]:
    """Return the tasks of a family in the order of their ids, declared as the mode says."""
    base = FAMILIES[family](random.Random(f"{family}/{seed}"), count)
    draw = random.Random(f"{family}/{seed}/{mode}")
    share = {"over": 0.8, "under": 0.2, "under50": 0.5}.get(mode, 0.0)
    wrong = set(draw.sample(range(count), round(count * share)))
    made = []
    for index, (category, ramps) in enumerate(base):
        peak = max(size for _, size in ramps)
        declared = _declared(mode, peak, index in wrong, draw)
        clipped = None if declared is None else min(DECLARED_MIB_MAX, declared + 1)
        made.append(Work(index + 1, category, ramps, clipped))
    return made


def _declared(mode: str, peak: float, wrong: bool, draw: random.Random) -> float | None:
    match mode:
        case "none":
            return None
        case "over":
            return peak * (3.0 if wrong else 1.1)
        case "under":
            return peak / draw.uniform(1.2, 2.0) if wrong else peak * draw.uniform(1.0, 1.3)
        case "under50":
            return peak / draw.uniform(1.3, 2.5) if wrong else peak * draw.uniform(1.0, 1.3)
        case "exact":
            return peak + 8
    raise ValueError(f"mode '{mode}' is none of {', '.join(MODES)}")

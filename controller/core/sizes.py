"""The words of sizing: what is asked, what is answered, and what is kept at most."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

MIB = 1 << 20
GIB = 1 << 30
SIZE_MIN_BYTES = MIB


class Basis(Enum):
    """From what a size was taken."""

    DEFAULT = "default"
    DECLARED = "declared"
    BORROWED = "borrowed"  # other categories
    CATEGORY = "category"
    INPUT = "input"
    LADDER = "ladder"  # after running out of memory
    PILOT = "pilot"  # a running sibling


# What nobody measured: a part of it is tried first.
UNMEASURED = frozenset({Basis.DECLARED, Basis.DEFAULT})


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

    categories_max: int = 2_000  # beyond it the one longest without news is forgotten
    runs_max: int = 256  # of one category; the oldest fifth makes room
    errors_max: int = 128  # of other categories, of each guess at each stage
    pending_max: int = 16  # ends out of memory that no success has answered yet, of a category
    default_bytes: int = GIB
    lost_price: float = 0.65  # an hour lost costs as much as this many hours of an average task
    failure_price: float = 2.0  # beside it, each failure, in runtimes of an average task
    doubt: float = 1.0  # runs that the experience with other categories counts for


@dataclass(frozen=True, slots=True)
class CategorySummary:
    """What was learned of a category, for people."""

    category: str
    runs: int
    out_of_memory: int
    peak_median_bytes: int
    peak_p95_bytes: int
    peak_max_bytes: int
    declared_bytes: int | None  # the newest
    over_declared: float | None  # median of declared / peak

"""MASS's sizing as a plug-in of replays that speak MiB and seconds.

A replay calls `predict(task)` before a task, `retry(task, last_mib, failures)` after an attempt
that ran out of memory at its size, and `observe(task, peak_mib, runtime_s)` when it succeeded.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Protocol

# It is imported by other programs too, from wherever they run.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from controller.core.sizing import MIB, Ask, Sizing, SizingLimits

SECOND_NS = 1_000_000_000


class Task(Protocol):
    """What a replay tells of a task before it runs."""

    category: str
    input_mib: float | None
    declared_mib: float | None


class Mass:
    """One workflow from a cold start, on nodes of `node_mib`; the default request is MASS's own."""

    def __init__(self, node_mib: float, default_mib: float) -> None:
        del default_mib
        self.node_bytes = int(node_mib * MIB)
        self.sizing = Sizing(SizingLimits())

    def predict(self, task: Task) -> float:
        """Return the size of a first attempt, in MiB."""
        return self.sizing.size(_ask(task), self.node_bytes).memory_bytes / MIB

    def retry(self, task: Task, last_mib: float, failures: int) -> float:
        """Return the size of the attempt after one that died at `last_mib`, in MiB."""
        ask, reached = _ask(task), int(last_mib * MIB)
        self.sizing.observe_out_of_memory(ask, reached)
        chosen = self.sizing.size_after_out_of_memory(ask, reached, failures, self.node_bytes)
        return chosen.memory_bytes / MIB

    def observe(self, task: Task, peak_mib: float, runtime_s: float) -> None:
        """Learn from a success."""
        self.sizing.observe(_ask(task), round(peak_mib * MIB), round(runtime_s * SECOND_NS))


def _ask(task: Task) -> Ask:
    return Ask(task.category, _bytes(task.input_mib), _bytes(task.declared_mib))


def _bytes(mib: float | None) -> int | None:
    return None if mib is None else round(mib * MIB)

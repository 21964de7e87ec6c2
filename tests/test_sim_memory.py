"""The memory policy on the simulated node: nothing lost, and the kernel never has to act."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from _memory_policy import POLICIES, Outcome, simulate
from _memory_workloads import MODES, make


def run(family: str, mode: str, policy: str = "default", tasks: int = 60) -> Outcome:
    return simulate(make(family, mode, 7, tasks), POLICIES[policy], 7)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_lost_and_the_kernel_never_kills(mode: str) -> None:
    outcome = run("yardstick", mode)
    assert (outcome.kernel_kills, outcome.lost) == (0, 0)
    assert outcome.guard_kills <= 12
    assert outcome.makespan_s < 60


@pytest.mark.parametrize("family", ["sawteeth", "tails", "strangers"])
def test_nor_with_other_shapes_of_tasks(family: str) -> None:
    outcome = run(family, "none", tasks=30)
    assert (outcome.kernel_kills, outcome.lost) == (0, 0)


def test_without_the_guard_the_kernel_kills() -> None:
    """Else the tests above would show nothing about the guard."""
    assert run("yardstick", "over", "no guard").kernel_kills > 0


def test_the_same_arguments_give_the_same_outcome() -> None:
    assert run("spikes", "none", tasks=16) == run("spikes", "none", tasks=16)

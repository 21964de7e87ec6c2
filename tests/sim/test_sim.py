"""Many worlds, each from its seed: nothing is lost, nothing runs twice, whatever dies.

A failure prints the seed and the command that tells its story again.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from sim.faults import FAULTS, seed_that_notices
from sim.world import World

SEEDS = 200
STEPS = 300
PROCESSES = min(2, os.cpu_count() or 1)
TESTS = Path(__file__).resolve().parent.parent


def live(seed: int) -> str:
    """Return the digest of a story, or fail with the seed, its end and how to hear it again."""
    world = World(seed)
    try:
        return world.run(STEPS)
    except Exception as error:
        story = "\n".join(world.story)
        raise AssertionError(
            f"{story}\n{type(error).__name__}: {error}\n"
            f"seed {seed}: make sim SEED={seed} STEPS={STEPS}"
        ) from error


def test_no_seed_breaks_a_promise() -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
        digests = list(pool.map(live, range(SEEDS), chunksize=5))
    assert len(set(digests)) == SEEDS, "every seed is a story of its own"


def test_seed_tells_the_same_story_again_in_another_process() -> None:
    told = subprocess.run(
        [sys.executable, "-c", "from sim.test_sim import live; print(live(7))"],
        env={**os.environ, "PYTHONPATH": str(TESTS), "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == live(7)


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_noticed(name: str) -> None:
    assert seed_that_notices(name, range(SEEDS), lambda seed: World(seed).run(STEPS)) is not None

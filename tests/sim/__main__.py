"""Tells the story of one seed, or looks for seeds that break: `make sim SEED=7 STEPS=1000`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sim.world import World

WIDTH = 200


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when all promises held, else 1 after printing what broke and how it came to it."""
    parser = argparse.ArgumentParser(prog="python -m sim", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--steps", type=int, default=300, help="steps before everything calms down")
    parser.add_argument("--seeds", type=int, default=1, help="how many; stories only for one")
    options = parser.parse_args(arguments)
    broken = 0
    for seed in range(options.seed, options.seed + options.seeds):
        broken += not _live(seed, options.steps, loud=options.seeds == 1)
    if options.seeds > 1:
        print(f"{options.seeds} seeds from {options.seed}, {options.steps} steps: {broken} broken")
    return 1 if broken else 0


def _live(seed: int, steps: int, *, loud: bool) -> bool:
    world = World(seed, tell=_tell if loud else None)
    try:
        digest = world.run(steps)
    except Exception as error:
        # Whatever it is, it is what the seed was looking for: an assertion of ours, or a surprise.
        if not loud:
            print(f"\n--- seed {seed} ---", *world.story, sep="\n")
        print(f"{type(error).__name__}: {error}")
        print(f"seed {seed}: make sim SEED={seed} STEPS={steps}", flush=True)
        return False
    if loud:
        print(f"all promises held; the story's digest is {digest}")
    return True


def _tell(line: str) -> None:
    print(line if len(line) <= WIDTH else f"{line[:WIDTH]}...")


if __name__ == "__main__":
    sys.exit(main())

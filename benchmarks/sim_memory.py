"""Memory policies on a simulated node: makespan, kills and wasted memory by family, mode and seed.

60 tasks are submitted at once to a node of 4 GiB with 8 slots. Guard, growth and sizing are the
product's own modules, only the node, the kernel and the wire between them are simulated
(_simulated_node.py, _memory_policy.py); same arguments, same figures. Nothing here is a
measurement: real runs were about a tenth slower, see the README.

    python benchmarks/sim_memory.py                          the default policy, the yardstick
    python benchmarks/sim_memory.py --policies --seeds 10    every policy compared
    python benchmarks/sim_memory.py --families all           other shapes of tasks
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable

import _figures
from _memory_policy import POLICIES, Outcome, simulate
from _memory_workloads import FAMILIES, MODES, make

# The most a median may be, by mode: seconds, kills by the guard, GiB x s wasted. Real runs.
TARGETS = {"over": (65, 4, 3), "under": (54, 6, 3), "under50": (54, 9, 4), "none": (56, 12, 6)}


def outcomes(
    policy: str, family: str, mode: str, seeds: Iterable[int], tasks: int
) -> list[Outcome]:
    """Return one outcome per seed."""
    return [simulate(make(family, mode, seed, tasks), POLICIES[policy], seed) for seed in seeds]


def row(name: str, family: str, mode: str, runs: list[Outcome]) -> str:
    """Return one line of the table: medians, and the sums that have to be nothing."""

    def middle(field: str) -> float:
        return float(statistics.median(getattr(run, field) for run in runs))

    makespans = [run.makespan_s for run in runs]
    return (
        f"{name:16} {family:10} {mode:8}{middle('makespan_s'):7.1f} "
        f"({min(makespans):.0f}-{max(makespans):.0f})".ljust(50)
        + f"{middle('guard_kills'):6.1f}{middle('wasted_gib_s'):8.1f}"
        f"{sum(run.kernel_kills for run in runs):8}{sum(run.lost for run in runs):6}"
        f"{middle('used_ratio') * 100:7.0f} %{middle('frozen_s'):8.0f}"
    )


def main() -> int:
    """Run, print the table, and write the default policy's figures."""
    parser = _figures.parser(__doc__ or "")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=60)
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--families", default="yardstick", help="names with commas, or all")
    parser.add_argument("--policies", action="store_true", help="every policy, not the default")
    options = parser.parse_args()
    families = list(FAMILIES) if options.families == "all" else options.families.split(",")
    policies = list(POLICIES) if options.policies else ["default"]
    seeds = range(1, options.seeds + 1)
    figures = []
    print(
        f"{'policy':16} {'family':10} {'mode':8}{'makespan s':>10} (range)".ljust(50)
        + "kills  wasted  kernel  lost   used  frozen s"
    )
    for policy in policies:
        for family in families:
            for mode in options.modes.split(","):
                runs = outcomes(policy, family, mode, seeds, options.tasks)
                print(row(policy, family, mode, runs), flush=True)
                if policy != "default":
                    continue
                target = TARGETS.get(mode) if family == "yardstick" else None
                figures += _told(f"{family}, {mode}", runs, target)
    return _figures.report(
        "sim_memory", figures, options.json, seeds=options.seeds, tasks=options.tasks
    )


def _told(
    name: str, runs: list[Outcome], target: tuple[float, float, float] | None
) -> list[_figures.Figure]:
    seconds, kills, wasted = target or (None, None, None)
    middle = statistics.median
    return [
        _figures.Figure(f"{name}: makespan", middle(r.makespan_s for r in runs), "s", seconds),
        _figures.Figure(f"{name}: kills", middle(r.guard_kills for r in runs), "tasks", kills),
        _figures.Figure(f"{name}: wasted", middle(r.wasted_gib_s for r in runs), "GiB s", wasted),
        _figures.Figure(
            f"{name}: kernel kills and lost",
            sum(r.kernel_kills + r.lost for r in runs),
            "tasks",
            0,
        ),
    ]


if __name__ == "__main__":
    raise SystemExit(main())

"""Sizes that are learned, with real processes: the fifth run is sized by the four before it."""

from __future__ import annotations

import pytest
from e2e.conftest import MakeCluster
from support.cluster import MIB, Cluster, eater

SIZE_MIB = 300


def run_once(cluster: Cluster) -> str:
    """Run a task of the category `eat` without --mem through the CLI; return its id."""
    submitted = cluster.mass(
        "submit", "-q", "--wait", "-n", "eat", "-c", "0.1", "--", *eater(SIZE_MIB, 0.3)
    )
    assert submitted.code == 0, submitted
    return submitted.out.strip()


@pytest.mark.parametrize("memory_limits", ["strict", "elastic"])
def test_fifth_run_without_a_size_gets_what_the_others_needed(
    make_cluster: MakeCluster, memory_limits: str
) -> None:
    cluster = make_cluster("--memory-limits", memory_limits)
    cluster.start_controller()
    cluster.start_agent()
    cluster.wait_ready()
    for _ in range(4):
        run_once(cluster)
    task_id = run_once(cluster)
    task = cluster.client.task(task_id)
    need_bytes = task.memory_peak_bytes
    assert need_bytes > SIZE_MIB * MIB
    assert task.memory_auto
    assert task.memory_elastic == (memory_limits == "elastic")
    # Under elastic limits only a share of what is expected is set aside at first.
    decided = task.memory_expected_peak_bytes if task.memory_elastic else task.memory_size_bytes
    assert abs(decided - need_bytes) <= 0.3 * need_bytes
    why = cluster.mass("task", "why", task_id).out
    assert "4 runs" in why
    category = cluster.mass("category", "show", "eat", "-o", "json").json
    assert category["succeeded"] == 5
    assert abs(category["memory_peak_median_bytes"] - need_bytes) <= 0.1 * need_bytes
    cluster.controller.kill()
    cluster.start_controller()
    again = cluster.mass("category", "show", "eat", "-o", "json").json
    assert again["memory_peak_median_bytes"] == category["memory_peak_median_bytes"]

"""The specification's own rules: declared metrics without data, then with data from real agents."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from e2e.conftest import MakeCluster
from mass.v1 import types_pb2
from support.cluster import Cluster

pytestmark = pytest.mark.e2e

RULES = Path(__file__).parents[1] / "rulefiles" / "good"
ALERT = "High memory usage detected!"


def states(cluster: Cluster) -> dict[tuple[str, str], str]:
    """Return the state of each alert by name and subject."""
    word = types_pb2.AlertState.Name
    return {
        (a.name, a.labels.get("task", a.node_id)): word(a.state).removeprefix("ALERT_STATE_")
        for a in cluster.client.alerts()
    }


def metrics(cluster: Cluster, name: str) -> dict[str, float]:
    """Return a metric's value by node."""
    return {n.id: n.metrics[name] for n in cluster.client.nodes() if name in n.metrics}


def test_rule_on_a_declared_metric_fires_when_an_agent_reports_it(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.py"
    shutil.copy(RULES / "specification_metrics.py.txt", rules)
    source = tmp_path / "metric1"
    source.write_text("81\n")
    cluster = make_cluster("--rules", str(rules))
    cluster.start_controller()
    cluster.start_agent("mute", "--sample", "100ms")
    cluster.wait_ready()
    # Nobody reports it: no data, which is no alert.
    listed = cluster.mass("rules", "list")
    (line,) = [line for line in listed.out.splitlines() if "metric1 > 80" in line]
    assert "NO_DATA" in line
    assert states(cluster) == {}
    assert metrics(cluster, "metric1") == {}
    cluster.start_agent("speaking", "--sample", "100ms", "--metric", f"metric1=cat {source}")
    fires = {(ALERT, "speaking"): "FIRING"}
    cluster.until(lambda: states(cluster) == fires, "the alert fires where it is reported")
    assert metrics(cluster, "metric1") == {"speaking": 81.0}
    source.unlink()
    lacking = {(ALERT, "speaking"): "NO_DATA"}
    cluster.until(lambda: states(cluster) == lacking, "missing data is no recovery")
    source.write_text("79\n")
    over = {(ALERT, "speaking"): "RESOLVED"}
    cluster.until(lambda: states(cluster) == over, "the alert resolves")


def test_metrics_of_a_directory_are_reported_and_others_ignored(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.py"
    shutil.copy(RULES / "specification_metrics.py.txt", rules)
    directory = tmp_path / "textfile"
    directory.mkdir()
    (directory / "disk.prom").write_text("# TYPE metric2 gauge\nmetric2 10\nnot_declared 1\n")
    cluster = make_cluster("--rules", str(rules))
    cluster.start_controller()
    cluster.start_agent("node-1", "--sample", "100ms", "--metric-dir", str(directory))
    fires = {("Low disk space!", "node-1"): "FIRING"}
    cluster.until(lambda: states(cluster) == fires, "the alert fires")
    ignored = "metric ignored, no rule file declares it node=node-1 metric=not_declared"
    assert cluster.controller.log().count(ignored) == 1


SCOPES = """\
groups:
- name: scopes
  rules:
  - alert: TwoNodes
    scope: cluster
    expr: count(mem_percent >= 0) >= 2 and tasks_running_total > 0
    keep_firing_for: 1s
  - alert: TaskRuns
    scope: task
    expr: task_runtime_seconds >= 0
    annotations: {summary: "task {{ $labels.task }} on {{ $labels.node }}"}
"""


def test_alerts_of_tasks_and_of_the_cluster_go_on_over_a_restart(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(SCOPES)
    cluster = make_cluster("--rules", str(rules))
    cluster.start_controller()
    for name in ("node-1", "node-2"):
        cluster.start_agent(name, "--sample", "100ms")
    cluster.wait_ready()
    task_id = cluster.submit_one("sleep", "60")
    fires = {("TwoNodes", ""): "FIRING", ("TaskRuns", task_id): "FIRING"}
    cluster.until(lambda: states(cluster) == fires, "both fire")
    before = {a.name: a for a in cluster.client.alerts()}
    assert "node" not in before["TwoNodes"].labels
    node_id = before["TaskRuns"].node_id
    assert before["TaskRuns"].annotations["summary"] == f"task {task_id} on {node_id}"
    cluster.controller.kill()
    cluster.start_controller()
    cluster.wait_ready()
    cluster.until(lambda: states(cluster) == fires, "both still fire")
    after = {a.name: a for a in cluster.client.alerts()}
    assert {n: a.fired_at for n, a in after.items()} == {n: a.fired_at for n, a in before.items()}
    cluster.client.cancel([task_id], grace_ns=0)
    kept = {("TwoNodes", ""): "KEEP_FIRING", ("TaskRuns", task_id): "RESOLVED"}
    cluster.until(lambda: states(cluster) == kept, "one is kept")
    over = dict.fromkeys(kept, "RESOLVED")
    cluster.until(lambda: states(cluster) == over, "both are over")

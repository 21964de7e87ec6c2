"""Alerts: from a rules file of either form to the list, the log and a webhook."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from e2e.conftest import MakeCluster
from mass.v1 import types_pb2
from support.cluster import Cluster

pytestmark = pytest.mark.e2e

YAML = """\
groups:
- name: e2e
  rules:
  - alert: Busy
    expr: tasks_running > 0
    labels: {severity: warning}
    annotations: {summary: "{{ $labels.node }} runs {{ $value }} tasks"}
"""
PYTHON = """\
RULES = [
    {"expression": "tasks_running > 0", "alert": "Busy"},
]
INTERVAL = 6
"""


class Receiver:
    """A webhook: keeps what is posted to it."""

    def __init__(self) -> None:
        self.alerts: list[dict[str, Any]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                receiver.alerts += json.loads(self.rfile.read(length))
                self.send_response(200)
                self.end_headers()

            def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
                """Keep the test's output quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/alerts"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A webhook on a free port."""
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.mark.parametrize(("name", "text"), [("rules.yaml", YAML), ("rules.py", PYTHON)])
def test_alert_fires_is_told_everywhere_and_resolves(
    make_cluster: MakeCluster, receiver: Receiver, tmp_path: Path, name: str, text: str
) -> None:
    rules = tmp_path / name
    rules.write_text(text)
    cluster = make_cluster("--rules", str(rules), "--webhook", receiver.url)
    cluster.start_controller()
    cluster.start_agent("node-1", "--sample", "200ms")
    cluster.wait_ready()
    task_id = cluster.submit_one("sleep", "60")
    cluster.until(lambda: alert_states(cluster) == ["FIRING"], "the alert fires")
    (alert,) = cluster.client.alerts()
    assert (alert.name, alert.node_id, alert.value) == ("Busy", "node-1", 1.0)
    assert alert.labels["node"] == "node-1"
    shown = cluster.mass("alert", "list")
    assert shown.code == 0
    assert "Busy" in shown.out
    cluster.until(lambda: len(receiver.alerts) == 1, "the webhook is told")
    cluster.client.cancel([task_id], grace_ns=0)
    cluster.until(lambda: alert_states(cluster) == ["RESOLVED"], "the alert resolves")
    cluster.until(lambda: len(receiver.alerts) == 2, "the webhook is told again")
    fired, resolved = receiver.alerts
    assert fired["labels"]["alertname"] == resolved["labels"]["alertname"] == "Busy"
    assert fired["startsAt"] == resolved["startsAt"]
    assert "Busy" in cluster.controller.log()
    if name.endswith(".yaml"):
        assert fired["annotations"]["summary"] == "node-1 runs 1 tasks"
        assert fired["labels"]["severity"] == "warning"


def alert_states(cluster: Cluster) -> list[str]:
    """Return the states of all alerts."""
    name = types_pb2.AlertState.Name
    return [name(a.state).removeprefix("ALERT_STATE_") for a in cluster.client.alerts()]


def test_firing_alert_goes_on_after_a_restart_and_is_not_told_twice(
    make_cluster: MakeCluster, receiver: Receiver, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(YAML)
    cluster = make_cluster("--rules", str(rules), "--webhook", receiver.url)
    cluster.start_controller()
    cluster.start_agent("node-1", "--sample", "200ms")
    cluster.wait_ready()
    task_id = cluster.submit_one("sleep", "60")
    cluster.until(lambda: len(receiver.alerts) == 1, "the webhook is told")
    (before,) = cluster.client.alerts()
    cluster.controller.kill()
    cluster.start_controller()
    cluster.wait_ready()
    cluster.until(lambda: alert_states(cluster) == ["FIRING"], "the alert still fires")
    (after,) = cluster.client.alerts()
    assert after.fired_at == before.fired_at
    cluster.client.cancel([task_id], grace_ns=0)
    cluster.until(lambda: alert_states(cluster) == ["RESOLVED"], "the alert resolves")
    cluster.until(lambda: len(receiver.alerts) == 2, "the webhook is told of its end")
    assert "endsAt" in receiver.alerts[1]


def test_rules_file_that_cannot_be_is_refused_by_line(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(YAML.replace("tasks_running", "tasks_runing"))
    cluster = make_cluster("--rules", str(rules))
    cluster.controller.start()
    assert cluster.controller.wait() != 0
    assert f"{rules}:5" in cluster.controller.log()
    assert "tasks_running" in cluster.controller.log()

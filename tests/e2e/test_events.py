"""Events of a real cluster: followed through work, a silent agent and the controller's end."""

from __future__ import annotations

import json
import os
import signal

import pytest
from e2e.conftest import MakeCluster
from support.cluster import Cluster

pytestmark = pytest.mark.e2e


def test_followed_events_go_on_over_a_restart_of_the_controller(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster()
    cluster.start_controller()
    cluster.start_agent()
    cluster.wait_ready()
    with cluster.mass_process("events", "-f", "-o", "json") as follower:
        assert follower.stdout is not None
        lines = iter(follower.stdout.readline, "")
        seen: list[str] = []

        def until(text: str) -> None:
            for line in lines:
                seen.append(json.loads(line)["text"])
                if seen[-1] == text:
                    return
            raise AssertionError(f"the stream ended before {text!r}: {seen}")

        until("node node-1 is ready")
        (task_id,) = cluster.submit("true")
        until(f"task {task_id} (true) ended SUCCEEDED on node-1")
        assert seen[-4:-1] == [
            f"task {task_id} (true) waits",
            f"task {task_id} (true) goes to node-1",
            f"task {task_id} (true) runs on node-1",
        ]
        cluster.controller.terminate()
        cluster.start_controller()
        (again,) = cluster.submit("false")
        until(f"task {again} (false) ended FAILED on node-1: exited with code 1")
        assert len([text for text in seen if text.startswith(f"task {task_id} ")]) == 4
        follower.send_signal(signal.SIGINT)
        assert follower.wait(10) == 130


def test_reload_and_cordon_are_told(cluster: Cluster) -> None:
    assert cluster.mass("node", "cordon", "node-1", "--reason", "a disk").code == 0
    os.kill(cluster.controller.pid, signal.SIGHUP)

    def reloaded() -> bool:
        kinds = [event["kind"] for event in cluster.mass("events", "-o", "json").json]
        return "CONFIGURATION" in kinds

    cluster.until(reloaded, "the reload is told")
    texts = [event["text"] for event in cluster.mass("events", "-o", "json").json]
    assert any(text.startswith("node node-1 is cordoned by ") for text in texts)
    assert any(text.startswith("reloaded changed=nothing rules=") for text in texts)

"""What a task prints: the whole of it while its agent is there, the end of it afterwards."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
from mass.v1 import types_pb2
from support.cluster import Cluster

pytestmark = pytest.mark.e2e

TAIL_BYTES = 64 << 10
# Writes argv[1] numbered lines to stdout, and one to stderr.
PRINTER = (
    "import sys\n"
    "sys.stdout.write(''.join(f'line {n:07}\\n' for n in range(int(sys.argv[1]))))\n"
    "print('on stderr', file=sys.stderr)\n"
)
LINE_COUNT = 100_000  # 1.3 MB: many messages between agent and controller


def printed() -> bytes:
    """Return what PRINTER writes to stdout."""
    return b"".join(b"line %07d\n" % n for n in range(LINE_COUNT))


def test_whole_output_comes_through_the_agent_with_both_streams_apart(shared: Cluster) -> None:
    task_id = shared.submit_one(sys.executable, "-c", PRINTER, str(LINE_COUNT))
    shared.wait_state(task_id, "SUCCEEDED")
    assert shared.output(task_id) == (printed(), [])
    stderr = types_pb2.OUTPUT_STREAM_STDERR
    assert shared.output(task_id, stream=stderr) == (b"on stderr\n", [])
    assert shared.output(task_id, tail_bytes=13) == (b"line %07d\n" % (LINE_COUNT - 1), [])
    ran = shared.mass("task", "logs", task_id)
    assert ran.code == 0
    assert ran.out.encode() == printed()


def test_output_is_followed_while_the_task_runs(shared: Cluster, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    script = f"echo first; while [ ! -e {gate} ]; do sleep 0.02; done; echo last"
    task_id = shared.submit_one("sh", "-c", script)
    received: list[str] = []
    with shared.mass_process("task", "logs", "-f", task_id) as process:
        assert process.stdout is not None
        received.append(process.stdout.readline())
        assert shared.wait_state(task_id, "RUNNING").state == types_pb2.TASK_STATE_RUNNING
        gate.touch()
        received.append(process.stdout.read())
    assert received == ["first\n", "last\n"]
    assert process.returncode == 0


def test_follow_of_a_waiting_task_begins_when_it_starts(shared: Cluster) -> None:
    shared.client.cordon("node-1", "", "tester")
    outputs: list[bytes] = []
    try:
        task_id = shared.submit_one("echo", "hello")
        reader = threading.Thread(
            target=lambda: outputs.append(shared.output(task_id, follow=True)[0])
        )
        reader.start()
        assert shared.client.task(task_id).state == types_pb2.TASK_STATE_PENDING
    finally:
        shared.client.uncordon("node-1", "tester")
    reader.join(20)
    assert outputs == [b"hello\n"]


def test_end_of_the_output_is_kept_when_the_agent_is_gone(cluster: Cluster) -> None:
    ended = cluster.submit_one(sys.executable, "-c", PRINTER, str(LINE_COUNT))
    cluster.wait_state(ended, "SUCCEEDED")
    running = cluster.submit_one("sh", "-c", "echo so far; exec sleep 60")
    cluster.wait_state(running, "RUNNING")
    cluster.until(lambda: cluster.client.pool().tails_bytes > 0, "the output has come up")
    cluster.agents["node-1"].kill()
    data, notes = cluster.until(
        lambda: got if (got := cluster.output(ended))[1] else None, "the controller answers itself"
    )
    assert data == printed()[-TAIL_BYTES:]
    assert notes == ["only the last 64 KiB are kept here: node 'node-1' is not connected"]
    assert cluster.output(running)[0] == b"so far\n"
    stderr = types_pb2.OUTPUT_STREAM_STDERR
    assert cluster.output(ended, stream=stderr)[0] == b"on stderr\n"

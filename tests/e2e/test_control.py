"""The CLI's control of real processes: pauses, plans, reservations, output files."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cluster import GIB, Cluster

pytestmark = pytest.mark.e2e


def test_paused_process_stands_still_and_goes_on(shared: Cluster) -> None:
    count = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"
    task_id = shared.submit_one("sh", "-c", count)
    shared.until(lambda: shared.output(task_id)[0], "it has written")
    assert shared.mass("task", "pause", task_id).code == 0
    size = [-1, 0]

    def still() -> bool:
        size[:] = [size[1], len(shared.output(task_id)[0])]
        return size[0] == size[1]

    shared.until(still, "its output stands still")
    refused = shared.mass("task", "hold", task_id)
    assert (refused.code, refused.err) == (
        1,
        f"mass: task {task_id} is PAUSED; only PENDING ones can be held\n",
    )
    assert shared.mass("task", "resume", task_id, "-o", "json").json[0]["state"] == "RUNNING"
    shared.until(lambda: len(shared.output(task_id)[0]) > size[1], "it goes on")
    shared.client.cancel([task_id], grace_ns=0)
    shared.wait_ended([task_id])


def test_reservation_keeps_a_task_out_until_it_expires(shared: Cluster) -> None:
    (node,) = shared.client.nodes()
    size = node.memory_promise_bytes - GIB
    made = shared.mass(
        "reservation", "create", "--mem", f"{size // 1024}KiB", "--ttl", "1s", "-o", "json"
    ).json
    plan = shared.mass(
        "submit", "--dry-run", "--mem", "2GiB", "--mem-exact", "-o", "json", "--", "true"
    )
    assert (plan.code, plan.json[0]["reason_code"]) == (5, "NO_NODE_WITH_MEMORY")
    task_id = shared.submit_one("true", memory_request_bytes=2 * GIB, memory_exact=True)
    assert shared.client.task(task_id).reason_code == "NO_NODE_WITH_MEMORY"
    (task,) = shared.wait_ended([task_id])
    assert task.exit_code == 0
    gone = shared.mass("reservation", "release", made["id"])
    assert (gone.code, shared.mass("reservation", "list", "-o", "json").json) == (3, [])


def test_output_goes_to_the_file_that_was_named(shared: Cluster, tmp_path: Path) -> None:
    path = f"{tmp_path}/out-%j-%t"
    ran = shared.mass(
        "submit", "-q", "--wait", "--mem", "32MiB", "--stdout", path, "--", "echo", "here"
    )
    (written,) = tmp_path.iterdir()
    assert (ran.code, written.read_text()) == (0, "here\n")
    assert written.name == f"out-{ran.out.split()[0]}-1"

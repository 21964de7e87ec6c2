"""The live view, as a picture and as lines."""

from __future__ import annotations

import io

import pytest
from cli.conftest import Mass
from cli.fake_controller import GIB, FakeController, Served, alert, node, task
from mass.v1 import memory_pb2, types_pb2
from rich.console import Console

from controller.cli.address import parse_address
from controller.cli.client import Client
from controller.cli.view import (
    LiveScreen,
    PlainScreen,
    Snapshot,
    display_results,
    memory_bar,
    picture,
    pool_line,
    take_snapshot,
)

POOL = memory_pb2.Pool(capacity_bytes=64 << 20, used_bytes=1 << 20)


def snapshot(
    nodes: tuple[types_pb2.Node, ...] = (),
    tasks: tuple[types_pb2.Task, ...] = (),
    alerts: tuple[types_pb2.Alert, ...] = (),
) -> Snapshot:
    return Snapshot(nodes, tasks, alerts, POOL)


def drawn(results: Snapshot, height: int = 40, width: int = 140) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, height=height)
    console.print(picture(results, "MASS  controller 127.0.0.1:7461", width, height))
    return [line.rstrip() for line in file.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("fields", "lengths"),
    [
        ({}, (1, 2, 1, 4)),
        ({"memory_tasks_used_bytes": 0, "memory_foreign_bytes": 0}, (0, 0, 2, 6)),
        ({"memory_tasks_used_bytes": 9 * GIB}, (8, 0, 0, 0)),
        ({"memory_foreign_bytes": 9 * GIB}, (1, 7, 0, 0)),
        ({"memory_reserved_bytes": 99 * GIB}, (1, 2, 5, 0)),
        ({"memory_total_bytes": 0, "memory_tasks_used_bytes": 0}, (0, 8, 0, 0)),
        ({"memory_tasks_used_bytes": -1, "memory_foreign_bytes": -GIB}, (0, 0, 2, 6)),
    ],
)
def test_memory_bar_is_always_as_long_as_asked(
    fields: dict[str, int], lengths: tuple[int, ...]
) -> None:
    parts = memory_bar(node("n1", **fields), width=8)
    assert [name for name, _ in parts] == ["tasks", "foreign", "reserved", "free"]
    assert tuple(length for _, length in parts) == lengths


def test_rounding_of_the_parts_does_not_add_up() -> None:
    third = node(
        "n1",
        memory_total_bytes=100,
        memory_tasks_used_bytes=33,
        memory_foreign_bytes=33,
        memory_reserved_bytes=66,
    )
    assert memory_bar(third, width=10) == [
        ("tasks", 3), ("foreign", 4), ("reserved", 3), ("free", 0),
    ]  # fmt: skip


def test_picture_shows_nodes_tasks_alerts_and_pool() -> None:
    lines = drawn(
        snapshot((node("n1"),), (task("12", node_id="n1"),), (alert("NodeMemoryHigh", "n1"),))
    )
    text = "\n".join(lines)
    assert "████▓▓▓▓▓▓▓▓░░░░················" in text
    assert "3 GiB/8 GiB" in text
    assert any(line.split()[:4] == ["12", "sleep", "RUNNING", "n1"] for line in lines)
    assert any(line.startswith("NodeMemoryHigh") for line in lines)
    assert lines[-1].startswith("pool used 1 MiB of 64 MiB")


@pytest.mark.parametrize("height", [15, 24, 40])
def test_picture_fits_the_terminal_and_counts_what_it_leaves_out(height: int) -> None:
    nodes = tuple(node(f"n{number}") for number in range(50))
    tasks = tuple(task(str(number)) for number in range(100, 0, -1))
    alerts = tuple(alert("Full", f"n{number}") for number in range(50))
    lines = drawn(snapshot(nodes, tasks, alerts), height)
    assert len(lines) <= height
    left_out = [int(line.split()[1]) for line in lines if line.startswith("and ")]
    assert len(left_out) == 3
    assert all(count > 0 for count in left_out)


def test_long_reason_gives_way_to_the_other_columns() -> None:
    waiting = task("1234567", "PENDING", reason="no node " * 100)
    (line,) = [line for line in drawn(snapshot(tasks=(waiting,))) if "PENDING" in line]
    assert line.split()[:4] == ["1234567", "sleep", "PENDING", "-"]
    assert "1 GiB" in line
    assert line.endswith("…")


@pytest.mark.parametrize("width", [80, 120, 160])
def test_names_and_states_are_whole_in_terminals_of_usual_width(width: int) -> None:
    waiting = task("1234567", "PENDING", reason="asks 100 GiB, " * 20)
    ended = task("12", "OUT_OF_MEMORY", node_id="worker-17.example.org")
    results = snapshot((node("worker-17.example.org"),), (waiting, ended), (alert("Full", "n1"),))
    lines = drawn(results, width=width)
    assert all(len(line) <= width for line in lines)
    assert any(line.split()[:2] == ["worker-17.example.org", "READY"] for line in lines)
    assert any(line.split()[:3] == ["1234567", "sleep", "PENDING"] for line in lines)
    assert any(line.split()[:3] == ["12", "sleep", "OUT_OF_MEMORY"] for line in lines)
    assert any("asks 100 GiB, " in line for line in lines)
    assert any(line.split()[:3] == ["Full", "n1", "FIRING"] for line in lines)


def test_wide_terminal_shows_every_column() -> None:
    lines = drawn(snapshot((node("n1"),), (task("1"),), (alert("Full", "n1"),)), width=140)
    heads = [line.split() for line in lines]
    assert ["ID", "NAME", "STATE", "NODE", "USED/PEAK", "REQUEST", "RUNTIME", "REASON"] in heads
    assert ["ALERT", "ON", "STATE", "VALUE", "SINCE", "SUMMARY"] in heads


def test_refusals_of_the_pool_are_counted_only_when_there_are_any() -> None:
    assert "refused" not in pool_line(POOL)
    assert pool_line(memory_pb2.Pool(failures=3)).endswith(", 3 requests refused")


def test_names_are_not_read_as_markup() -> None:
    odd = types_pb2.TaskSpec(command=["x"], name="[bold]x[/nope]")
    assert "[bold]x[/nope]" in "\n".join(drawn(snapshot(tasks=(task("1", spec=odd),))))


def test_live_screen_draws_each_snapshot() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120, height=30)
    with LiveScreen(console, "MASS") as screen:
        display_results(snapshot((node("n1"),)), screen)
        display_results(snapshot((node("n2"),)), screen)
    assert file.getvalue().index("n1") < file.getvalue().index("n2")


class HandClock:
    """Time that is moved by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_lines_are_added_for_changes_and_for_nodes_when_it_is_time() -> None:
    clock = HandClock()
    lines: list[str] = []
    screen = PlainScreen(lines.append, clock, nodes_seconds=5.0)
    display_results(snapshot((node("n1"),), (task("1", "PENDING"),)), screen)
    assert lines == [
        "node n1 READY used 3 GiB of 8 GiB (38 %) foreign 2 GiB reserved 2 GiB promise 3 GiB "
        "tasks 1 pressure NONE",
        "pool used 1 MiB of 64 MiB (series 0 B, ledger 0 B, tails 0 B)",
        "task 1 sleep PENDING",
    ]
    lines.clear()
    display_results(snapshot((node("n1"),), (task("1", "PENDING"),)), screen)
    assert lines == []
    results = snapshot((node("n1"),), (task("2"), task("1", node_id="n1")), (alert("Full", "n1"),))
    display_results(results, screen)
    assert lines == [
        "task 1 sleep RUNNING on n1",
        "task 2 sleep RUNNING",
        "alert Full on n1 FIRING: n1 is at 91 %",
    ]
    lines.clear()
    clock.now += 5.0
    display_results(results, screen)
    assert [line.split()[0] for line in lines] == ["node", "pool"]


def test_changing_value_of_an_alert_adds_no_line() -> None:
    lines: list[str] = []
    screen = PlainScreen(lines.append, HandClock())
    first = alert("Full", "n1")
    second = alert("Full", "n1")
    second.value = 99.0
    display_results(snapshot(alerts=(first,)), screen)
    count = len(lines)
    display_results(snapshot(alerts=(second,)), screen)
    assert len(lines) == count


def test_snapshot_holds_first_all_that_runs_and_then_the_newest(
    mass: Mass, fake: FakeController, served: Served
) -> None:
    del mass
    fake.tasks = {str(n): task(str(n), "SUCCEEDED") for n in range(1, 200)}
    fake.tasks["5"] = task("5", "RUNNING")
    fake.nodes["n1"] = node("n1")
    client = Client(parse_address(served.address), lambda _: None)
    results = take_snapshot(client)
    client.close()
    assert [task.id for task in results.tasks] == ["5", *map(str, range(199, 99, -1))]
    assert [node.id for node in results.nodes] == ["n1"]

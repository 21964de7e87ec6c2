"""The live view: nodes with memory bars, tasks, alerts and the pool.

The rule: one snapshot is shown at a time, by `display_results`, on a terminal as a picture that is
redrawn, elsewhere as lines that are only added. What is shown comes from the API, nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from mass.units import size_words
from mass.v1 import memory_pb2, types_pb2

from controller.cli.alerts import ALERT_COLUMNS, alert_row
from controller.cli.columns import GAP, Fitted, fit
from controller.cli.output import printable
from controller.cli.records import alert_state, alert_subject, node_pressure, node_state, task_state
from controller.cli.task_order import gather, newest_first
from controller.cli.tasks import TASK_COLUMNS, task_row

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

    from controller.cli.client import Client

Key = TypeVar("Key", bound=Hashable)

TASKS_SHOWN_MAX = 100
PLAIN_NODES_SECONDS = 5.0
BAR_WIDTH_MAX = 32
BAR_WIDTH_MIN = 8


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is shown at one instant; tasks are the newest and those that run, which come first."""

    nodes: tuple[types_pb2.Node, ...]
    tasks: tuple[types_pb2.Task, ...]
    alerts: tuple[types_pb2.Alert, ...]
    pool: memory_pb2.Pool


class Screen(Protocol):
    """Where snapshots are shown."""

    def show(self, results: Snapshot) -> None:
        """Show a snapshot in place of, or after, the one before."""


def take_snapshot(client: Client) -> Snapshot:
    """Return what the controller says now: of tasks the newest 100, and 100 that run, that start
    and that wait."""
    tasks, _ = gather(client, TASKS_SHOWN_MAX)
    return Snapshot(tuple(client.nodes()), tuple(tasks), tuple(client.alerts()), client.pool())


def display_results(results: Snapshot, screen: Screen) -> None:
    """Show the results of the latest cycle on a screen."""
    screen.show(results)


class PlainScreen:
    """Adds lines: each node every few seconds, each task and alert when it changes."""

    def __init__(
        self,
        write: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        nodes_seconds: float = PLAIN_NODES_SECONDS,
    ) -> None:
        self._write = write
        self._clock = clock
        self._nodes_seconds = nodes_seconds
        self._nodes_next_at = 0.0
        # Both hold only what the latest snapshot held, so they stay as small as it is.
        self._task_lines: dict[str, str] = {}
        self._alert_lines: dict[tuple[str, str], str] = {}

    def show(self, results: Snapshot) -> None:
        """Write what has changed, and the nodes when it is time."""
        now = self._clock()
        if now >= self._nodes_next_at:
            self._nodes_next_at = now + self._nodes_seconds
            for node in results.nodes:
                self._write(printable(node_line(node)))
            self._write(pool_line(results.pool))
        by_age = sorted(results.tasks, key=newest_first, reverse=True)
        tasks = {task.id: task_line(task) for task in by_age}
        self._write_changes(self._task_lines, tasks)
        self._task_lines = tasks
        alerts = {(alert.name, alert_subject(alert)): alert_line(alert) for alert in results.alerts}
        self._write_changes(self._alert_lines, alerts)
        self._alert_lines = alerts

    def _write_changes(self, before: Mapping[Key, str], now: Mapping[Key, str]) -> None:
        for key, line in now.items():
            if before.get(key) != line:
                self._write(printable(line))


class LiveScreen:
    """Redraws one picture that fits the terminal."""

    def __init__(self, console: Console, title: str) -> None:
        from rich.live import Live

        self._console = console
        self._title = title
        self._live = Live(console=console, auto_refresh=False, screen=True)

    def __enter__(self) -> LiveScreen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, results: Snapshot) -> None:
        """Draw a snapshot in place of the one before."""
        width, height = self._console.size
        self._live.update(picture(results, self._title, width, height), refresh=True)


def picture(results: Snapshot, title: str, width: int, height: int) -> RenderableType:
    """Return a picture of at most `height` lines of `width`; what does not fit is counted."""
    from rich.console import Group
    from rich.text import Text

    # Title, key, pool, and for each of the three tables a header, its rule and what is left out.
    rows = max(3, height - 12)
    alerts_max = min(len(results.alerts), max(1, rows // 4))
    nodes_max = min(len(results.nodes), max(1, (rows - alerts_max) // 2))
    tasks_max = max(1, rows - alerts_max - nodes_max)
    alert_rows = [alert_row(alert) for alert in results.alerts]
    task_rows = [task_row(task) for task in results.tasks]
    parts: list[RenderableType] = [
        _heading(title, width),
        _nodes_table(results.nodes[:nodes_max], width),
        *_left_out(len(results.nodes) - nodes_max, "nodes"),
        _table(TASK_COLUMNS, task_rows[:tasks_max], width),
        *_left_out(len(results.tasks) - tasks_max, "tasks"),
    ]
    if alert_rows:
        parts.append(_table(ALERT_COLUMNS, alert_rows[:alerts_max], width))
        parts += _left_out(len(alert_rows) - alerts_max, "alerts")
    pool = pool_line(results.pool)
    parts.append(Text(pool, style="dim", no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def memory_bar(node: types_pb2.Node, width: int = BAR_WIDTH_MAX) -> list[tuple[str, int]]:
    """Return the parts of a node's memory and their lengths, `width` in all.

    The parts in order: used by tasks, used by others (foreign), reserved for tasks and not used
    yet, free. Each part ends where its running sum lies, so that rounding never adds up.
    """
    total = max(node.memory_total_bytes, 1)
    tasks = node.memory_tasks_used_bytes
    foreign = node.memory_foreign_bytes
    reserved = max(0, node.memory_reserved_bytes - tasks)
    parts = []
    drawn = 0
    summed = 0
    for name, part_bytes in (("tasks", tasks), ("foreign", foreign), ("reserved", reserved)):
        summed += max(0, part_bytes)
        end = min(width, max(drawn, round(summed * width / total)))
        parts.append((name, end - drawn))
        drawn = end
    return [*parts, ("free", width - drawn)]


def node_line(node: types_pb2.Node) -> str:
    """Return one line for a node's memory."""
    percent = 100 * node.memory_used_bytes / max(node.memory_total_bytes, 1)
    return (
        f"node {node.id} {node_state(node)} used {size_words(node.memory_used_bytes)} of "
        f"{size_words(node.memory_total_bytes)} ({percent:.0f} %) "
        f"foreign {size_words(node.memory_foreign_bytes)} "
        f"reserved {size_words(node.memory_reserved_bytes)} "
        f"promise {size_words(node.memory_promise_bytes)} "
        f"tasks {node.tasks_running} pressure {node_pressure(node)}"
    )


def task_line(task: types_pb2.Task) -> str:
    """Return one line for where a task is; it changes exactly when that does."""
    node = f" on {task.node_id}" if task.node_id else ""
    reason = f": {task.reason}" if task.reason else ""
    return f"task {task.id} {task.spec.name} {task_state(task)}{node}{reason}"


def alert_line(alert: types_pb2.Alert) -> str:
    """Return one line for where an alert is; its value is left out, since it moves all the time."""
    summary = alert.annotations.get("summary", "")
    text = f": {summary}" if summary and not alert.HasField("resolved_at") else ""
    return f"alert {alert.name} on {alert_subject(alert)} {alert_state(alert)}{text}"


def pool_line(pool: memory_pb2.Pool) -> str:
    """Return one line for the controller's pool."""
    failures = f", {pool.failures} requests refused" if pool.failures else ""
    return (
        f"pool used {size_words(pool.used_bytes)} of {size_words(pool.capacity_bytes)} "
        f"(series {size_words(pool.series_bytes)}, ledger {size_words(pool.ledger_bytes)}, "
        f"tails {size_words(pool.tails_bytes)}){failures}"
    )


BAR_LOOKS = {
    "tasks": ("█", "green"),
    "foreign": ("▓", "yellow"),
    "reserved": ("░", "cyan"),
    "free": ("·", "dim"),
}
PRESSURE_STYLES = {"WARN": "yellow", "HIGH": "bold yellow", "CRITICAL": "bold red"}


NODE_COLUMNS = ("NODE", "STATE", "USED/TOTAL", "PROMISE", "TASKS", "PRESSURE", "MEMORY")


def _heading(title: str, width: int) -> Text:
    from rich.text import Text

    key = Text()
    for name, (letter, style) in BAR_LOOKS.items():
        key.append(f"  {letter}", style=style)
        key.append(f" {name}")
    heading = Text(title, style="bold", overflow="fold")
    separator = "" if heading.cell_len + key.cell_len <= width else "\n"
    return Text.assemble(heading, separator, key)


def _nodes_table(nodes: tuple[types_pb2.Node, ...], width: int) -> Table:
    from rich.text import Text

    rows = [_node_row(node) for node in nodes]
    blank = " " * BAR_WIDTH_MIN
    fitted = fit(NODE_COLUMNS, [[*row, blank] for row in rows], ("TASKS", "PROMISE"), width)
    bar_width = min(BAR_WIDTH_MAX, fitted.widths[-1])
    table = _empty_table(NODE_COLUMNS, fitted)
    for node, row in zip(nodes, rows, strict=True):
        bar = Text()
        for name, length in memory_bar(node, bar_width):
            letter, style = BAR_LOOKS[name]
            bar.append(letter * length, style=style)
        cells = [_cell(text) for text in row]
        cells[-1].stylize(PRESSURE_STYLES.get(row[-1], ""))
        cells.append(bar)
        table.add_row(*(cells[index] for index in fitted.indexes))
    return table


def _node_row(node: types_pb2.Node) -> list[str]:
    return [
        node.id,
        node_state(node),
        f"{size_words(node.memory_used_bytes)}/{size_words(node.memory_total_bytes)}",
        size_words(node.memory_promise_bytes),
        str(node.tasks_running),
        node_pressure(node),
    ]


def _table(columns: tuple[str, ...], rows: list[list[str]], width: int) -> Table:
    fitted = fit(columns, rows, ("REQUEST", "SINCE", "NODE", "VALUE", "RUNTIME"), width)
    table = _empty_table(columns, fitted)
    for row in rows:
        table.add_row(*(_cell(row[index]) for index in fitted.indexes))
    return table


def _empty_table(columns: Sequence[str], fitted: Fitted) -> Table:
    from rich import box
    from rich.table import Table

    # The box puts one space between columns, the padding the others.
    padding = (0, GAP - 1, 0, 0)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=padding)
    for index, width in zip(fitted.indexes, fitted.widths, strict=True):
        table.add_column(columns[index], width=width, no_wrap=True, overflow="ellipsis")
    return table


def _cell(text: str) -> Text:
    from rich.text import Text

    # Text, not str: rich would read square brackets in a task's name as markup.
    return Text(printable(text), no_wrap=True, overflow="ellipsis")


def _left_out(count: int, what: str) -> list[RenderableType]:
    from rich.text import Text

    return [Text(f"and {count} more {what}", style="dim")] if count > 0 else []

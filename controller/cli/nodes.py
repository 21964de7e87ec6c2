"""The commands `mass node ...`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from mass.units import size_words

from controller.cli.output import OutputFormat, print_fields, print_json, print_table, printable
from controller.cli.session import (
    CONTROLLER_DEFAULT,
    ControllerOption,
    InsecureOption,
    OutputOption,
    Session,
    new_group,
    open_session,
    user_name,
)
from controller.cli.units import format_instant, parse_duration

if TYPE_CHECKING:
    from mass.v1.types_pb2 import Node

app = new_group("Look at nodes, and keep tasks off them.")

NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="The agent's --name.")]


@app.command("list")
def list_nodes(
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List nodes."""
    with open_session(controller, insecure, output) as session:
        from controller.cli.records import node_record

        nodes = session.client.nodes()
        if session.json:
            print_json([node_record(node) for node in nodes])
        else:
            print_table(NODE_COLUMNS, [node_row(node) for node in nodes])


@app.command("show")
def show_node(
    node_id: NodeArgument,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show all about a node, with its latest metrics."""
    with open_session(controller, insecure, output) as session:
        _print_node(session, session.client.node(node_id))


@app.command("cordon")
def cordon_node(
    node_id: NodeArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why; people will see it.")] = "",
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Keep new tasks off a node; those it has go on."""
    with open_session(controller, insecure, output) as session:
        _print_scheduling(session, session.client.cordon(node_id, reason, user_name()))


@app.command("uncordon")
def uncordon_node(
    node_id: NodeArgument,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Let new tasks onto a node again."""
    with open_session(controller, insecure, output) as session:
        _print_scheduling(session, session.client.uncordon(node_id, user_name()))


@app.command("drain")
def drain_node(
    node_id: NodeArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why; people will see it.")] = "",
    deadline: Annotated[
        str | None,
        typer.Option("--deadline", metavar="TIME", help="Then end and requeue what is left."),
    ] = None,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Keep new tasks off a node and wait for those it has; uncordon opens it again."""
    with open_session(controller, insecure, output) as session:
        deadline_ns = None if deadline is None else parse_duration(deadline, "deadline")
        node = session.client.drain(node_id, reason, user_name(), deadline_ns)
        _print_scheduling(session, node)


@app.command("forget")
def forget_node(
    node_id: NodeArgument,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Remove a node that is gone and has no tasks."""
    with open_session(controller, insecure, output) as session:
        session.client.forget_node(node_id)
        if session.json:
            print_json({"id": node_id})


NODE_COLUMNS = (
    "NODE",
    "STATE",
    "SCHEDULING",
    "PRESSURE",
    "USED/TOTAL",
    "FOREIGN",
    "RESERVED",
    "PROMISE",
    "CPUS",
    "TASKS",
    "REASON",
)


def node_row(node: Node) -> list[str]:
    """Return a node's cells for NODE_COLUMNS."""
    from controller.cli.records import node_pressure, node_scheduling, node_state

    return [
        node.id,
        node_state(node),
        node_scheduling(node),
        node_pressure(node),
        f"{size_words(node.memory_used_bytes)}/{size_words(node.memory_total_bytes)}",
        size_words(node.memory_foreign_bytes),
        size_words(node.memory_reserved_bytes),
        size_words(node.memory_promise_bytes),
        f"{node.cpus_used:g}/{node.cpus:g}",
        str(node.tasks_running),
        "; ".join(filter(None, (node.state_reason, node.scheduling_reason))),
    ]


def _print_node(session: Session, node: Node) -> None:
    from controller.cli.records import node_record

    record = node_record(node)
    if session.json:
        print_json(record)
        return
    metrics, steps = record.pop("metrics"), record.pop("guard_steps")
    fields = []
    for key, value in record.items():
        name = key.removesuffix("_bytes").replace("_", " ")
        is_size = key.endswith("_bytes")
        is_instant = isinstance(value, str) and key.endswith(("_at", "_since", "_deadline"))
        shown = format_instant(value) if is_instant else value
        if isinstance(value, bool):
            shown = "yes" if value else "no"
        if isinstance(value, list):
            shown = " ".join(value)
        if isinstance(value, dict):
            shown = " ".join(f"{label}={text}" if text else label for label, text in value.items())
        fields.append((name, _text(shown, is_size) if shown not in (None, "") else "-"))
    print_fields(fields)
    if metrics:
        print("metrics")
        print_fields([(f"  {name}", _metric_text(name, value)) for name, value in metrics.items()])
    if steps:
        print("guard")
        for step in steps:
            print(printable(f"  {step}"))


def _text(value: str | float, is_size: bool) -> str:
    if isinstance(value, str):
        return value
    if is_size:
        return size_words(int(value))
    return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.12g}"


def _metric_text(name: str, value: float) -> str:
    from controller.core.metrics import METRICS, Unit

    unit = next((metric.unit for metric in METRICS if metric.name == name), None)
    if unit is Unit.BYTES_PER_SECOND:
        return f"{size_words(round(value))}/s"
    return _text(value, unit is Unit.BYTES)


def _print_scheduling(session: Session, node: Node) -> None:
    from controller.cli.records import node_record, node_scheduling

    if session.json:
        print_json(node_record(node))
        return
    reason = f": {node.scheduling_reason}" if node.scheduling_reason else ""
    print(printable(f"node {node.id} {node_scheduling(node)}{reason}"))

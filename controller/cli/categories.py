"""The commands `mass category ...`: what was learned of tasks that need alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from mass.units import size_words

from controller.cli.output import OutputFormat, print_fields, print_json, print_table
from controller.cli.session import (
    CONTROLLER_DEFAULT,
    ControllerOption,
    InsecureOption,
    OutputOption,
    new_group,
    open_session,
)
from controller.cli.units import format_duration

if TYPE_CHECKING:
    from mass.v1.memory_pb2 import Category

app = new_group("Look at what was learned of tasks that need alike.")

COLUMNS = (
    "CATEGORY", "RUNS", "FAILED", "OOM", "SPARED", "PEAK P50", "P95", "MAX", "DECLARED", "OVER",
    "RUNTIME", "NEXT",
)  # fmt: skip


@app.command("list")
def list_categories(
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List categories: peaks, what was declared and how much too much, what a new task gets."""
    with open_session(controller, insecure, output) as session:
        from controller.cli.records import category_record

        found = session.client.categories()
        if session.json:
            print_json([category_record(category) for category in found])
        else:
            print_table(COLUMNS, [category_row(category) for category in found])


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A category.")],
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show what was learned of a category, and what a new task of it gets and why."""
    with open_session(controller, insecure, output) as session:
        from controller.cli.records import category_record

        record = category_record(session.client.category(name))
        if session.json:
            print_json(record)
            return
        fields = []
        for key, value in record.items():
            label = key.removesuffix("_bytes").removesuffix("_seconds").replace("_", " ")
            fields.append((label, _text(key, value)))
        print_fields(fields)


def category_row(category: Category) -> list[str]:
    """Return a category's cells for COLUMNS."""
    from controller.cli.records import category_record

    record = category_record(category)
    keys = (
        "name", "succeeded", "failed", "out_of_memory", "spared", "memory_peak_median_bytes",
        "memory_peak_p95_bytes", "memory_peak_max_bytes", "memory_declared_bytes", "over_declared",
        "runtime_median_seconds", "memory_size_bytes",
    )  # fmt: skip
    return [_text(key, record[key]) for key in keys]


def _text(key: str, value: object) -> str:
    match value:
        case None:
            return "-"
        case int() if key.endswith("_bytes"):
            return size_words(value)
        case float() if key.endswith("_seconds"):
            return format_duration(value)
        case float():
            return f"{value:.1f}x" if key == "over_declared" else f"{value:g}"
        case _:
            return str(value)

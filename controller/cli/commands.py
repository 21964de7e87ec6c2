"""Puts the commands of all nouns together."""

from __future__ import annotations

from typing import Annotated

import typer

from controller.cli import (
    alerts,
    categories,
    completion,
    config,
    db,
    events,
    install,
    nodes,
    pool,
    reservations,
    rules,
    services,
    submit,
    task_control,
    tasks,
)
from controller.cli.examples import add_examples
from controller.cli.session import new_group

app = new_group("MASS, the Memory Aware Scheduling System.", completion=True)
app.command("submit", context_settings=submit.COMMAND_SETTINGS)(submit.submit)
app.command("run", context_settings=submit.COMMAND_SETTINGS)(submit.run)
task_control.add_to(tasks.app)
app.add_typer(tasks.app, name="task", short_help="Look at tasks, end them, ask why.")
app.add_typer(nodes.app, name="node")
app.add_typer(alerts.app, name="alert")
app.command("events", short_help="Show what happened; -f goes on.")(events.events)
app.add_typer(rules.app, name="rules")
app.add_typer(pool.app, name="pool")
app.add_typer(reservations.app, name="reservation")
app.add_typer(categories.app, name="category")
app.command("controller")(services.controller)
app.command("dev", short_help="Run controller and agent here, with a live view.")(services.dev)
app.command("demo", short_help="Show what MASS does, in some ten seconds.")(services.demo)
app.add_typer(config.app, name="config")
app.add_typer(db.app, name="db")
app.command("install", short_help="Install the controller as a service.")(install.install)
app.command("completion", short_help="Print the completion script of a shell.")(
    completion.completion
)
add_examples(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"mass {version('mass-scheduler')}")
        except PackageNotFoundError:
            print("mass, from a source tree that is not installed")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print and leave."),
    ] = False,
) -> None:
    """MASS, the Memory Aware Scheduling System: places tasks by the memory that is measured."""

"""The commands `mass task hold|release|pause|resume|priority`."""

from __future__ import annotations

from typing import Annotated

import typer

from controller.cli.exits import ExitCode
from controller.cli.output import OutputFormat, print_json
from controller.cli.session import (
    CONTROLLER_DEFAULT,
    ControllerOption,
    InsecureOption,
    OutputOption,
    open_session,
)
from controller.cli.tasks import IdsArgument, select

QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing.")]


def hold(
    ids: IdsArgument,
    quiet: QuietOption = False,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Keep waiting tasks from being placed."""
    _control("HOLD", ids, 0, quiet, controller, insecure, output)


def release(
    ids: IdsArgument,
    quiet: QuietOption = False,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Let held tasks be placed."""
    _control("RELEASE", ids, 0, quiet, controller, insecure, output)


def pause(
    ids: IdsArgument,
    quiet: QuietOption = False,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Stop the processes of running tasks for a while; their memory stays reserved."""
    _control("PAUSE", ids, 0, quiet, controller, insecure, output)


def resume(
    ids: IdsArgument,
    quiet: QuietOption = False,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Let paused tasks go on."""
    _control("RESUME", ids, 0, quiet, controller, insecure, output)


def priority(
    value: Annotated[int, typer.Argument(metavar="PRIORITY", help="Higher goes first.")],
    ids: IdsArgument,
    quiet: QuietOption = False,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Give tasks another priority; a negative one stands behind `--`."""
    _control("PRIORITY", ids, value, quiet, controller, insecure, output)


def add_to(app: typer.Typer) -> None:
    """Add the commands to the group of tasks."""
    for command in (hold, release, pause, resume, priority):
        app.command(command.__name__)(command)


def _control(
    action: str,
    ids: list[str],
    value: int,
    quiet: bool,
    controller: str,
    insecure: bool,
    output: OutputFormat,
) -> None:
    with open_session(controller, insecure, output) as session:
        from mass.v1 import task_pb2

        from controller.cli.follow import end_line
        from controller.cli.records import task_record

        number = task_pb2.TaskAction.Value(f"TASK_ACTION_{action}")
        tasks, refused = session.client.control(select(session, ids), number, value)
        if session.json:
            print_json([task_record(task) for task in tasks])
        for task, why in zip(tasks, refused, strict=True):
            if why:
                session.note(why)
            elif not quiet and not session.json:
                print(end_line(task))
        if any(refused):
            raise typer.Exit(ExitCode.REFUSED)

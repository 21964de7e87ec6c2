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
from controller.cli.tasks import ByNameOption, ByStateOption, SomeIdsArgument, select_some

QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing.")]


def hold(
    ids: SomeIdsArgument = None,
    name: ByNameOption = "",
    state: ByStateOption = None,
    quiet: QuietOption = False,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Keep waiting tasks from being placed."""
    _control("HOLD", (ids, name, state), 0, quiet, (controller, insecure, output))


def release(
    ids: SomeIdsArgument = None,
    name: ByNameOption = "",
    state: ByStateOption = None,
    quiet: QuietOption = False,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Let held tasks be placed."""
    _control("RELEASE", (ids, name, state), 0, quiet, (controller, insecure, output))


def pause(
    ids: SomeIdsArgument = None,
    name: ByNameOption = "",
    state: ByStateOption = None,
    quiet: QuietOption = False,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Stop the processes of running tasks for a while; their memory stays reserved."""
    _control("PAUSE", (ids, name, state), 0, quiet, (controller, insecure, output))


def resume(
    ids: SomeIdsArgument = None,
    name: ByNameOption = "",
    state: ByStateOption = None,
    quiet: QuietOption = False,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Let paused tasks go on."""
    _control("RESUME", (ids, name, state), 0, quiet, (controller, insecure, output))


def priority(
    value: Annotated[int, typer.Argument(metavar="PRIORITY", help="Higher goes first.")],
    ids: SomeIdsArgument = None,
    name: ByNameOption = "",
    state: ByStateOption = None,
    quiet: QuietOption = False,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Give tasks another priority; a negative one stands behind `--`."""
    _control("PRIORITY", (ids, name, state), value, quiet, (controller, insecure, output))


def add_to(app: typer.Typer) -> None:
    """Add the commands to the group of tasks."""
    for command in (hold, release, pause, resume, priority):
        app.command(command.__name__)(command)


def _control(
    action: str,
    wanted: tuple[list[str] | None, str, list[str] | None],
    value: int,
    quiet: bool,
    whom: tuple[str, bool, OutputFormat],
) -> None:
    with open_session(*whom) as session:
        from mass.v1 import task_pb2

        from controller.cli.follow import end_line
        from controller.cli.records import task_record

        number = task_pb2.TaskAction.Value(f"TASK_ACTION_{action}")
        tasks, refused = session.client.control(select_some(session, *wanted), number, value)
        if session.json:
            print_json([task_record(task) for task in tasks])
        for task, why in zip(tasks, refused, strict=True):
            if why:
                session.note(why)
            elif not quiet and not session.json:
                print(end_line(task))
        if any(refused):
            raise typer.Exit(ExitCode.REFUSED)

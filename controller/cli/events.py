"""The command `mass events`: what happened, and with -f what happens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from controller.cli.output import OutputFormat, print_json, printable
from controller.cli.session import (
    CONTROLLER_DEFAULT,
    ControllerOption,
    InsecureOption,
    OutputOption,
    open_session,
)

if TYPE_CHECKING:
    from mass.v1.event_pb2 import Event

LAST_DEFAULT = 100


def events(
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on with each new one until Ctrl-C.")
    ] = False,
    last: Annotated[
        int,
        typer.Option("--last", metavar="N", min=0, help="How many of the kept ones; 0 means all."),
    ] = LAST_DEFAULT,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show what happened: tasks, nodes, alerts, reservations, reloads; oldest first."""
    with open_session(controller, insecure, output) as session:
        from controller.cli.records import event_record

        found = session.client.events(last, follow)
        if session.json and not follow:
            print_json([event_record(event) for event in found])
            return
        for event in found:
            if session.json:
                print(json.dumps(event_record(event), ensure_ascii=False), flush=True)
            else:
                print(event_line(event), flush=True)


def event_line(event: Event) -> str:
    """Return one line for an event: its time in UTC to the millisecond, its kind, its sentence."""
    at = event.at.ToDatetime().isoformat(timespec="milliseconds") + "Z"
    return printable(f"{at}  {event.kind:<15}  {event.text}")

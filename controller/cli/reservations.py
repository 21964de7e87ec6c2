"""The commands `mass reservation ...`: memory set aside for something that is not a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from mass.units import size_words

from controller.cli.output import OutputFormat, print_json, print_table
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
from controller.cli.units import format_instant, parse_duration, parse_size

if TYPE_CHECKING:
    from mass.v1.memory_pb2 import Reservation

app = new_group("Set memory of a node aside for something that is not a task.")

TtlOption = Annotated[str, typer.Option("--ttl", metavar="TIME", help="How long it lasts: 10m.")]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="A reservation's id.")]
COLUMNS = ("ID", "NODE", "MEMORY", "EXPIRES", "USER", "PURPOSE")


@app.command("create")
def create(
    mem: Annotated[str, typer.Option("--mem", metavar="SIZE", help="How much: 8GiB.")],
    ttl: TtlOption,
    node: Annotated[str, typer.Option("--node", help="Where. [the most memory left]")] = "",
    purpose: Annotated[str, typer.Option("--purpose", help="What for; people see it.")] = "",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print only the id.")] = False,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Set memory aside; it counts in every placement until its time is over."""
    with open_session(controller, insecure, output) as session:
        reservation = session.client.reserve(
            parse_size(mem), node, parse_duration(ttl, "ttl"), purpose, user_name()
        )
        if quiet and not session.json:
            print(reservation.id)
        else:
            _print(session, reservation)


@app.command("list")
def list_reservations(
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List reservations."""
    with open_session(controller, insecure, output) as session:
        from controller.cli.records import reservation_record

        found = session.client.reservations()
        if session.json:
            print_json([reservation_record(reservation) for reservation in found])
        else:
            print_table(COLUMNS, [reservation_row(reservation) for reservation in found])


@app.command("renew")
def renew(
    reservation_id: IdArgument,
    ttl: TtlOption,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Let a reservation last for this long from now."""
    with open_session(controller, insecure, output) as session:
        ttl_ns = parse_duration(ttl, "ttl")
        _print(session, session.client.renew_reservation(reservation_id, ttl_ns))


@app.command("release")
def release(
    reservation_id: IdArgument,
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Give a reservation back before its end."""
    with open_session(controller, insecure, output) as session:
        session.client.release_reservation(reservation_id)
        if session.json:
            print_json({"id": reservation_id})


def _print(session: Session, reservation: Reservation) -> None:
    from controller.cli.records import reservation_record

    if session.json:
        print_json(reservation_record(reservation))
    else:
        print_table(COLUMNS, [reservation_row(reservation)])


def reservation_row(reservation: Reservation) -> list[str]:
    """Return a reservation's cells for COLUMNS."""
    return [
        reservation.id,
        reservation.node_id,
        size_words(reservation.memory_bytes),
        format_instant(reservation.expires_at.ToJsonString()),
        reservation.user or "-",
        reservation.purpose or "-",
    ]

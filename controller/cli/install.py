"""The command `mass install`: the controller's systemd unit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controller.cli.session import open_session
from controller.core.errors import InvalidRequest


def install(
    systemd: Annotated[bool, typer.Option("--systemd", help="Write a systemd unit.")] = False,
    user: Annotated[
        bool, typer.Option("--user", help="For your own service manager, not the system's.")
    ] = False,
    show: Annotated[bool, typer.Option("--print", help="Print it, write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a unit that differs.")] = False,
    directory: Annotated[
        Path | None, typer.Option("--directory", metavar="DIR", help="Where units are.")
    ] = None,
) -> None:
    """Install the controller of this environment as a service (`mass-agent install`: the agent)."""
    with open_session() as session:
        from controller.install import UNIT, closed_to_others, folder, unit_text, write_unit

        if not systemd:
            raise InvalidRequest("say --systemd: there is no other service manager it can be for")
        text = unit_text(user)
        if show:
            print(text, end="")
            return
        path = (directory or folder(user)) / UNIT
        print(f"{path} {'is written' if write_unit(path, text, force=force) else 'is as it was'}")
        closed = None if user else closed_to_others()
        if closed is not None:
            session.note(
                f"the service's own user cannot enter {closed}; install MASS elsewhere, for"
                " example in /opt/mass, or set User= with `systemctl edit`"
            )
        manager = "systemctl --user" if user else "systemctl"
        print(f"next: {manager} daemon-reload && {manager} enable --now {UNIT}")

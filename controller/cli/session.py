"""What every command begins with: its common options, and a session that reports errors.

The rule: a command raises MassError and never prints one; the session prints it where and how the
user asked (text, or JSON on stderr) and ends with the exit code of exits.py.
"""

from __future__ import annotations

import os
import pwd
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from controller.cli.address import DEFAULT_ADDRESS, trusted_address
from controller.cli.exits import ExitCode, exit_code_of
from controller.cli.output import OutputFormat, print_error
from controller.core.errors import MassError

if TYPE_CHECKING:
    from controller.cli.client import Client

ControllerOption = Annotated[
    str,
    typer.Option(
        "--controller", envvar="MASS_CONTROLLER", metavar="HOST:PORT", help="Whom to ask."
    ),
]
InsecureOption = Annotated[
    bool,
    typer.Option(
        "--insecure",
        envvar="MASS_INSECURE",
        help="Talk to a controller on another machine without TLS.",
    ),
]
OutputOption = Annotated[OutputFormat, typer.Option("-o", "--output", help="How to print.")]

NOTE_AGAIN_SECONDS = 10.0
CONTROLLER_DEFAULT = DEFAULT_ADDRESS


class Session:
    """One run of one command: how it prints and whom it asks."""

    def __init__(self, controller: str, insecure: bool, output: OutputFormat) -> None:
        self._controller = controller
        self._insecure = insecure
        self._client: Client | None = None
        self._noted: dict[str, float] = {}
        self.output = output

    @property
    def json(self) -> bool:
        """Whether data is printed as JSON."""
        return self.output is OutputFormat.JSON

    @property
    def client(self) -> Client:
        """The client, opened at its first use: that is when grpc is imported."""
        if self._client is None:
            address = trusted_address(self._controller, self._insecure)
            from controller.cli.client import Client

            self._client = Client(address, self.note)
        return self._client

    def note(self, text: str) -> None:
        """Print a remark to stderr; with JSON nothing, since stderr then holds only errors.

        The same remark within 10 s is printed once: three streams that break off together have
        one thing to say.
        """
        now = time.monotonic()
        self._noted = {
            said: at for said, at in self._noted.items() if now - at < NOTE_AGAIN_SECONDS
        }
        if not self.json and text not in self._noted:
            self._noted[text] = now
            print(f"mass: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Close the channel, if there is one."""
        if self._client is not None:
            self._client.close()


@contextmanager
def open_session(
    controller: str = CONTROLLER_DEFAULT,
    insecure: bool = False,
    output: OutputFormat = OutputFormat.TABLE,
) -> Iterator[Session]:
    """Give a session; turn an error in its block into a message and an exit code."""
    session = Session(controller, insecure, output)
    try:
        yield session
    except MassError as error:
        print_error(error, output)
        raise typer.Exit(exit_code_of(error)) from error
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.CANCELLED) from None
    finally:
        session.close()


def new_group(help_text: str, completion: bool = False) -> typer.Typer:
    """Return the group of commands of one noun, or with `completion` the group of all.

    Without markup no help page and no message needs rich, which costs more than all the rest.
    """
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=completion,
        # Shown with each mistake: a command's options stand behind it.
        subcommand_metavar="COMMAND [ITS OPTIONS] [ARGS]...",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def user_name() -> str:
    """Return the name of who runs this process, or its number where it has no name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid{os.getuid()}"

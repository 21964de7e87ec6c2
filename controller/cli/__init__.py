"""The command `mass`: one module for each noun; what is heavy is imported inside the commands.

The rule: `mass --help` imports neither grpc nor rich, numpy or sqlalchemy.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; leaves by SystemExit with a code of exits.py."""
    try:
        import typer
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        sys.exit("mass: the command line needs the extra 'cli': pip install 'mass-scheduler[cli]'")
    del typer
    from controller.cli.commands import app

    app(prog_name="mass")

"""The commands `mass config ...`, and the option that names the configuration file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from mass.units import size_words

from controller.cli.output import OutputFormat, print_json
from controller.cli.session import OutputOption, new_group, open_session

app = new_group("Check and show the controller's configuration.")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="A TOML file. [MASS_CONFIG, else /etc/mass/controller.toml if it is there]",
    ),
]
FileArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[FILE]", help="A TOML file instead of the one that would be read."),
]


@app.command("check")
def check_config(file: FileArgument = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Read file, environment and rules files as the controller would; nothing is started."""
    with open_session(output=output) as session:
        from controller.config import load_config
        from controller.pool_size import pool_bytes
        from controller.reload import read_rules

        config = load_config({}, os.environ, file)
        rules = read_rules(config.settings)
        size_bytes = pool_bytes(config.settings.limits(), rules)
        name = None if config.file is None else str(config.file)
        if session.json:
            print_json({"file": name, "rules": len(rules), "pool_bytes": size_bytes})
            return
        count = f"{len(rules)} rule{'' if len(rules) == 1 else 's'}"
        print(
            f"{name or 'no file, environment and defaults'}: {count}, "
            f"a pool of {size_words(size_bytes)}, no mistake found"
        )


@app.command("dump")
def dump_config(file: FileArgument = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Print every setting, its value and where that is from, in the form of a file."""
    with open_session(output=output) as session:
        from mass.configfile import dump

        from controller.config import load_config

        shown = load_config({}, os.environ, file).shown()
        if session.json:
            print_json({key: {"value": value, "from": at} for key, (value, at) in shown.items()})
        else:
            print(dump(shown), end="")

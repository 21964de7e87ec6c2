"""The commands `mass db ...`: they work on a data directory, no controller is asked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from mass.units import size_words

from controller.cli.config import ConfigOption
from controller.cli.output import OutputFormat, print_json
from controller.cli.session import OutputOption, new_group, open_session

app = new_group("Look after the controller's store.")

DataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Where the store is. [as the controller's]"),
]


@app.command("upgrade")
def upgrade_store(
    data: DataOption = None,
    config: ConfigOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Bring the store in a data directory to this version; a copy is kept beside it."""
    with open_session(output=output) as session:
        from controller.store.schema import upgrade

        directory = _directory(data, config)
        done = upgrade(directory)
        if session.json:
            copy = None if done.copy is None else str(done.copy)
            print_json({"from": done.from_revision, "to": done.to_revision, "copy": copy})
        elif done.copy is None:
            print(f"the store in {directory} is up to date: {done.to_revision}")
        else:
            print(
                f"the store in {directory} went from {done.from_revision} to {done.to_revision}; "
                f"it was copied to {done.copy} before"
            )


@app.command("backup")
def backup_store(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")],
    data: DataOption = None,
    config: ConfigOption = None,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Copy the store to a new file; a running controller goes on meanwhile."""
    with open_session(output=output) as session:
        from controller.store.backup import backup

        directory = _directory(data, config)
        size_bytes = backup(directory, file)
        if session.json:
            print_json({"file": str(file), "bytes": size_bytes})
        else:
            print(f"the store in {directory} was copied to {file}, {size_words(size_bytes)}")


@app.command("restore")
def restore_store(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `mass db backup` wrote.")],
    data: DataOption = None,
    config: ConfigOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Put a store that is there already aside.")
    ] = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Put a copy in the place of the store, while no controller runs."""
    with open_session(output=output) as session:
        from controller.store.backup import restore

        directory = _directory(data, config)
        done = restore(file, directory, force=force)
        if session.json:
            print_json(
                {
                    "data": str(directory),
                    "revision": done.revision,
                    "outdated": done.outdated,
                    "aside": None if done.aside is None else str(done.aside),
                    "next_task_id": done.next_task_id,
                }
            )
            return
        print(f"{file} was restored to {directory}; new tasks begin at id {done.next_task_id}")
        if done.aside is not None:
            print(f"the store that was there is {done.aside}")
        if done.outdated:
            print(f"it is of an older version: run `mass db upgrade --data {directory}`")


def _directory(data: Path | None, config: Path | None) -> Path:
    if data is not None:  # a mistake in the configuration must not stand in a restore's way
        return data
    from controller.config import load_config

    return load_config({}, os.environ, config).settings.data

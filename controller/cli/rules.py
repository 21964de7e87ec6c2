"""The commands `mass rules ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controller.cli.output import OutputFormat, print_json, print_table
from controller.cli.session import (
    CONTROLLER_DEFAULT,
    ControllerOption,
    InsecureOption,
    OutputOption,
    new_group,
    open_session,
)
from controller.cli.units import format_duration

app = new_group("Check rules files, and look at the rules in force.")

RULE_COLUMNS = ("RULE", "SCOPE", "FOR", "BLOCKS", "HOLDING", "EXPRESSION")


@app.command("check")
def check_rules(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Rules files.")],
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Read rules files as the controller would; no controller is asked."""
    with open_session(output=output) as session:
        from controller.rulefile import RuleFileError, find_mistakes, load_rules

        # All together: a name may not stand in two files.
        mistakes, are_all = find_mistakes(files)
        if mistakes:
            lines = [mistake.message for mistake in mistakes]
            if len(lines) > 1 or not are_all:
                more = "" if are_all else ", the first of more"
                lines.append(f"{len(lines)} mistakes{more}")
            raise RuleFileError("\n".join(lines))
        counts = [(str(file), len(load_rules([file]).rules)) for file in files]
        if session.json:
            print_json([{"file": file, "rules": count} for file, count in counts])
            return
        for file, count in counts:
            print(f"{file}: {count} rule{'' if count == 1 else 's'}, no mistake found")


@app.command("list")
def list_rules(
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List the rules in force, and on how many of the nodes with data each holds."""
    with open_session(controller, insecure, output) as session:
        from controller.cli.records import rule_record

        records = [rule_record(rule) for rule in session.client.rules()]
        if session.json:
            print_json(records)
            return
        rows = [
            [
                record["name"],
                record["scope"],
                format_duration(record["hold_seconds"]),
                "placement" if record["blocks_placement"] else "-",
                # Nothing is known where no node has data: that is not the same as holding nowhere.
                f"{record['holding_nodes']}/{record['known_nodes']}"
                if record["known_nodes"]
                else "NO_DATA",
                record["expression"],
            ]
            for record in records
        ]
        print_table(RULE_COLUMNS, rows)

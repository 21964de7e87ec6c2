"""The commands `mass pool ...`."""

from __future__ import annotations

from mass.units import size_words

from controller.cli.output import OutputFormat, print_fields, print_json
from controller.cli.session import (
    CONTROLLER_DEFAULT,
    ControllerOption,
    InsecureOption,
    OutputOption,
    new_group,
    open_session,
)

app = new_group("Look at the controller's own memory pool.")


@app.command("show")
def show_pool(
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show the pool's statistics and who uses it."""
    with open_session(controller, insecure, output) as session:
        from controller.cli.records import pool_record

        record = pool_record(session.client.pool())
        if session.json:
            print_json(record)
            return
        fields = []
        for key, value in record.items():
            if isinstance(value, bool):
                text = "yes" if value else "no"
            else:
                text = size_words(value) if key.endswith("_bytes") else f"{value:,}"
            fields.append((key.removesuffix("_bytes").replace("_", " "), text))
        print_fields(fields)

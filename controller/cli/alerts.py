"""The commands `mass alert ...`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controller.cli.output import OutputFormat, print_json, print_table
from controller.cli.session import (
    CONTROLLER_DEFAULT,
    ControllerOption,
    InsecureOption,
    OutputOption,
    new_group,
    open_session,
)
from controller.cli.units import format_instant

if TYPE_CHECKING:
    from mass.v1.types_pb2 import Alert

app = new_group("Look at alerts.")


@app.command("list")
def list_alerts(
    controller: ControllerOption = CONTROLLER_DEFAULT,
    insecure: InsecureOption = False,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List active and lately resolved alerts, firing ones first."""
    with open_session(controller, insecure, output) as session:
        from controller.cli.records import alert_record

        alerts = session.client.alerts()
        if session.json:
            print_json([alert_record(alert) for alert in alerts])
        else:
            print_table(ALERT_COLUMNS, [alert_row(alert) for alert in alerts])


ALERT_COLUMNS = ("ALERT", "ON", "STATE", "VALUE", "SINCE", "SUMMARY")


def alert_row(alert: Alert) -> list[str]:
    """Return an alert's cells for ALERT_COLUMNS."""
    from controller.cli.records import alert_record, alert_state, alert_subject

    record = alert_record(alert)
    since = record["resolved_at"] or record["fired_at"] or record["active_at"] or "-"
    return [
        alert.name,
        alert_subject(alert),
        alert_state(alert),
        f"{alert.value:.6g}",
        format_instant(since),
        alert.annotations.get("summary", ""),
    ]

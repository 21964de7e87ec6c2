"""Says where tasks would go, and why not elsewhere (`mass submit --dry-run`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from controller.cli.exits import ExitCode
from controller.cli.output import print_json, print_table, printable
from controller.cli.session import Session

if TYPE_CHECKING:
    from mass.v1.types_pb2 import TaskSpec


def print_plans(session: Session, specs: list[TaskSpec]) -> None:
    """Print for each task where it would go now; end with TRY_LATER when one would wait."""
    from controller.cli.records import refusal_record

    plans = [session.client.plan(spec) for spec in specs]
    if session.json:
        print_json(
            [
                {
                    "node_id": plan.node_id or None,
                    "reason_code": plan.reason_code or None,
                    "reason": plan.reason,
                    "refusals": [refusal_record(refusal) for refusal in plan.refusals],
                }
                for plan in plans
            ]
        )
    else:
        for plan in plans:
            where = f"would go to node {plan.node_id}" if plan.node_id else "would wait"
            code = f" ({plan.reason_code})" if plan.reason_code else ""
            print(printable(f"{where}{code}: {plan.reason}"))
            if plan.refusals:
                rows = [[r.node_id, r.reason_code, r.reason] for r in plan.refusals]
                print_table(("NODE", "WHY NOT", "REASON"), rows)
    if not all(plan.node_id for plan in plans):
        raise typer.Exit(ExitCode.TRY_LATER)

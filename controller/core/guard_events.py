"""What guards tell: each step is noted for people, and a frozen task's time stands still."""

from __future__ import annotations

from controller.core.cluster import Cluster
from controller.core.commands import Command, NoteGuardStep
from controller.core.events import GuardActed
from controller.core.model import GuardStepKind

FREEZES = {GuardStepKind.FREEZE: True, GuardStepKind.THAW: False}


def on_guard_acted(cluster: Cluster, event: GuardActed) -> list[Command]:
    """Note what a node's guard did; steps of a stream that was replaced count as well."""
    if event.node_id not in cluster.nodes:
        return []
    commands: list[Command] = []
    for step in event.steps:
        cluster.guard_log.add(event.node_id, step)
        if step.kind in FREEZES:
            cluster.learning.freeze((step.task_id, step.attempt), FREEZES[step.kind])
        commands.append(NoteGuardStep(event.node_id, step))
    return commands

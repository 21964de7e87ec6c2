"""Core values as the API shows them. Reads the cluster, changes nothing."""

from __future__ import annotations

import math
import statistics

from mass.v1 import memory_pb2, rule_pb2, task_pb2, types_pb2

from controller import wire
from controller.core.cluster import Cluster
from controller.core.explain import NodeRefusal, pending_reason, promise_bytes, state_reason
from controller.core.explain_memory import step_text
from controller.core.learning import Outcomes
from controller.core.model import (
    WAITING_STATES,
    Alert,
    DependencyKind,
    MemoryReservation,
    Preference,
    Task,
    TaskSpec,
    TaskState,
)
from controller.core.needs import need_of
from controller.core.nodes import NodeRecord
from controller.core.results import Results
from controller.core.rules import Rule
from controller.core.sizing import CategorySummary
from controller.wire import duration, timestamp

OOM_CAUSES = {core: shown for shown, core in wire.OOM_CAUSES.items()}
KINDS_SHOWN = {
    DependencyKind.OK: types_pb2.DEPENDENCY_KIND_OK,
    DependencyKind.ANY: types_pb2.DEPENDENCY_KIND_ANY,
    DependencyKind.FAIL: types_pb2.DEPENDENCY_KIND_FAIL,
}
PREFERENCES_SHOWN = {
    Preference.SPREAD: types_pb2.PREFERENCE_SPREAD,
    Preference.PACK: types_pb2.PREFERENCE_PACK,
}
# In the order of controller.core.promise.PRESSURES.
PRESSURES_SHOWN = (
    types_pb2.PRESSURE_NONE,
    types_pb2.PRESSURE_WARN,
    types_pb2.PRESSURE_HIGH,
    types_pb2.PRESSURE_CRITICAL,
)


def spec_view(spec: TaskSpec) -> types_pb2.TaskSpec:
    """Return a spec with its defaults filled in."""
    message = types_pb2.TaskSpec(
        command=spec.command,
        name=spec.name,
        category=spec.category,
        memory_request_bytes=spec.memory_request_bytes,
        memory_exact=spec.memory_exact,
        input_bytes=spec.input_bytes or 0,
        oom_group=spec.oom_group,
        memory_limit_bytes=spec.memory_limit_bytes or 0,
        cpus=spec.cpus,
        priority=spec.priority,
        retries=spec.retries,
        no_requeue=not spec.requeue,
        environment=dict(spec.environment),
        working_directory=spec.working_directory,
        constraint=spec.constraint,
        preference=PREFERENCES_SHOWN[spec.preference],
        gpus=spec.gpus,
        stdout_path=spec.stdout_path,
        stderr_path=spec.stderr_path,
        hold=spec.hold,
        retry_delay=duration(spec.retry_delay_ns),
        after=[
            types_pb2.Dependency(task_id=str(wanted.task_id), kind=KINDS_SHOWN[wanted.kind])
            for wanted in spec.after
        ],
    )
    if spec.array:
        message.array.indexes = spec.array
        message.array.running_max = spec.array_running_max
    if spec.time_limit_ns is not None:
        message.time_limit.CopyFrom(duration(spec.time_limit_ns))
    return message


def task_view(cluster: Cluster, results: Results | None, task: Task) -> types_pb2.Task:
    """Return a task with what is known of it at this moment."""
    code, reason = pending_reason(cluster, results, task)
    message = types_pb2.Task(
        id=str(task.id),
        spec=spec_view(task.spec),
        state=f"TASK_STATE_{task.state.value}",
        reason_code=code,
        reason=reason,
        user=task.user,
        attempt=task.attempt,
        node_id=task.node_id,
        memory_peak_bytes=task.memory_peak_bytes,
        memory_limit_bytes=task.memory_limit_bytes or 0,
        failures=task.failures,
        memory_requeues=task.memory_requeues,
        oom_cause=OOM_CAUSES[task.oom_cause],
        array_id=str(task.array_id) if task.array_id else "",
        array_index=task.array_index,
        gpu_indexes=task.gpu_indexes,
        memory_auto=not task.spec.memory_declared,
        memory_size_bytes=task.memory_size_bytes,
        memory_expected_peak_bytes=task.memory_expected_peak_bytes,
        memory_elastic=task.memory_elastic,
        memory_reason=task.memory_reason,
        memory_spared=task.memory_spared,
    )
    if task.state in WAITING_STATES:
        _size_waiting(cluster, task, message)
    message.spec.priority = task.priority
    if task.not_before_ns:
        message.not_before.CopyFrom(timestamp(task.not_before_ns))
    message.submitted_at.CopyFrom(timestamp(task.submitted_at_ns))
    if task.started_at_ns:
        message.started_at.CopyFrom(timestamp(task.started_at_ns))
    if task.ended_at_ns:
        message.ended_at.CopyFrom(timestamp(task.ended_at_ns))
    if task.exit_code is not None:
        message.exit_code = task.exit_code
    if task.signal is not None:
        message.signal = task.signal
    handle = cluster.reservations.get(task.id)
    if handle is not None:
        entry = cluster.ledger.read(handle)
        message.memory_reserved_bytes = entry.reserved_bytes
        message.memory_used_bytes = entry.used_bytes
        if task.memory_peak_bytes:  # of an earlier attempt
            message.memory_peak_bytes = max(task.memory_peak_bytes, entry.used_bytes)
    return message


def _size_waiting(cluster: Cluster, task: Task, message: types_pb2.Task) -> None:
    """Say what a waiting task would get now."""
    need = cluster.need_of(task)
    if need is None:
        message.memory_size_bytes = task.spec.memory_request_bytes
        return
    decision = cluster.learning.decide(need)
    message.memory_size_bytes = decision.size_bytes
    message.memory_expected_peak_bytes = decision.expected_peak_bytes
    message.memory_reason = decision.reason


def category_view(
    cluster: Cluster, name: str, summary: CategorySummary | None
) -> memory_pb2.Category:
    """Return what was learned of a category; a summary is there once it has a run."""
    learning = cluster.learning
    outcomes = learning.outcomes.get(name) or Outcomes()
    spec = TaskSpec((name,), name, name, cluster.limits.memory_request_default_bytes, None,
                    memory_declared=False)  # fmt: skip
    need = need_of(Task(0, spec, "", TaskState.PENDING, 0), cluster.limits.memory_limits)
    assert need is not None
    decision = learning.decide(need)
    message = memory_pb2.Category(
        name=name,
        succeeded=outcomes.succeeded,
        failed=outcomes.failed,
        out_of_memory=outcomes.out_of_memory,
        spared=outcomes.spared,
        tasks_placed=cluster.category_tasks.get(name, 0),
        memory_size_bytes=decision.size_bytes,
        memory_expected_peak_bytes=decision.expected_peak_bytes,
        memory_reason=decision.reason,
    )
    if outcomes.runtimes_ns:
        message.runtime_median.CopyFrom(duration(int(statistics.median(outcomes.runtimes_ns))))
    if summary is not None:
        message.memory_peak_median_bytes = summary.peak_median_bytes
        message.memory_peak_p95_bytes = summary.peak_p95_bytes
        message.memory_peak_max_bytes = summary.peak_max_bytes
        message.memory_declared_bytes = summary.declared_bytes or 0
        message.over_declared = summary.over_declared or 0.0
    return message


def node_view(
    cluster: Cluster,
    results: Results | None,
    record: NodeRecord,
    now_ns: int,
    with_steps: bool = False,
) -> types_pb2.Node:
    """Return a node with its sums as of the last cycle, and what its guard did lately."""
    node, slot = record.node, record.slot
    ledger, table = cluster.ledger, cluster.table
    message = types_pb2.Node(
        id=node.id,
        state=f"NODE_STATE_{record.state.value}",
        state_reason=state_reason(record, now_ns),
        scheduling=f"SCHEDULING_{node.scheduling.value}",
        scheduling_reason=node.scheduling_reason,
        scheduling_by=node.scheduling_by,
        memory_total_bytes=int(table.total_bytes[slot]),
        memory_capacity_bytes=int(ledger.capacity_bytes[slot]),
        memory_reserved_bytes=int(ledger.reserved_bytes[slot]),
        memory_tasks_used_bytes=int(ledger.used_bytes[slot]),
        cpus=node.cpus,
        # What was sent ahead is held there: it occupies none yet.
        cpus_used=min(float(table.cpus_used[slot]), node.cpus),
        tasks_running=len(record.task_ids),
        labels=dict(node.labels),
        gpus=node.gpus,
        gpus_used=int(table.gpus_used[slot]),
        machine_id=node.machine_id,
        agent_version=node.agent_version,
        enforcement=node.enforcement,
        capabilities=record.capabilities,
    )
    message.intake_stopped = bool(table.intake_stopped[slot])
    if with_steps:
        message.guard_steps.extend(
            f"{timestamp(step.taken_at_ns).ToJsonString()} {step_text(step)}"
            for step in cluster.guard_log.of_node(node.id)
        )
    if node.drain_deadline_ns:
        message.drain_deadline.CopyFrom(timestamp(node.drain_deadline_ns))
    if node.scheduling_since_ns:
        message.scheduling_since.CopyFrom(timestamp(node.scheduling_since_ns))
    message.last_seen_at.CopyFrom(timestamp(record.last_seen_ns))
    for name in cluster.history.metrics:
        value = float(cluster.history.latest(name, now_ns)[slot])
        if math.isfinite(value):
            message.metrics[name] = value
    message.metrics["node_silent_seconds"] = max(0.0, (now_ns - record.last_seen_ns) / 1e9)
    message.memory_used_bytes = int(message.metrics.get("mem_used", 0.0))
    message.memory_available_bytes = int(message.metrics.get("mem_available", 0.0))
    message.cpu_percent = message.metrics.get("cpu_percent", 0.0)
    if results is not None and slot < results.count:
        promises = results.promises
        message.pressure = PRESSURES_SHOWN[int(promises.pressure[slot])]
        message.memory_foreign_bytes = int(promises.foreign[slot])
        message.memory_promise_bytes = promise_bytes(results, record)
    return message


def refusal_view(refusal: NodeRefusal) -> task_pb2.NodeRefusal:
    """Return why one node cannot take a task now."""
    return task_pb2.NodeRefusal(
        node_id=refusal.node_id,
        reason_code=refusal.code,
        reason=refusal.reason,
        requested_bytes=refusal.requested_bytes,
        promise_bytes=refusal.promise_bytes,
        foreign_used_bytes=refusal.foreign_used_bytes,
        reserved_bytes=refusal.reserved_bytes,
    )


def alert_view(alert: Alert) -> types_pb2.Alert:
    """Return an alert."""
    message = types_pb2.Alert(
        name=alert.name,
        node_id=alert.node_id,
        state=f"ALERT_STATE_{alert.state.value}",
        labels=dict(alert.labels),
        annotations=dict(alert.annotations),
        value=alert.value,
    )
    message.active_at.CopyFrom(timestamp(alert.active_at_ns))
    if alert.fired_at_ns:
        message.fired_at.CopyFrom(timestamp(alert.fired_at_ns))
    if alert.resolved_at_ns:
        message.resolved_at.CopyFrom(timestamp(alert.resolved_at_ns))
    return message


def rule_view(rule: Rule, holding_nodes: int, known_nodes: int) -> rule_pb2.Rule:
    """Return a rule in force."""
    return rule_pb2.Rule(
        name=rule.name,
        group=rule.group,
        expression=rule.expression.text,
        hold=duration(rule.hold_ns),
        labels=dict(rule.labels),
        annotations=dict(rule.annotations),
        blocks_placement=rule.blocks_placement,
        holding_nodes=holding_nodes,
        scope=rule.scope.value,
        keep_firing=duration(rule.keep_firing_ns),
        known_nodes=known_nodes,
    )


def reservation_view(reservation: MemoryReservation) -> memory_pb2.Reservation:
    """Return a reservation of memory."""
    return memory_pb2.Reservation(
        id=str(reservation.id),
        node_id=reservation.node_id,
        memory_bytes=reservation.memory_bytes,
        purpose=reservation.purpose,
        user=reservation.user,
        created_at=timestamp(reservation.created_at_ns),
        expires_at=timestamp(reservation.expires_at_ns),
    )


def pool_view(cluster: Cluster) -> memory_pb2.Pool:
    """Return the controller's pool and who uses it."""
    pool = cluster.pool.statistics()
    return memory_pb2.Pool(
        capacity_bytes=pool.capacity_bytes,
        used_bytes=pool.used_bytes,
        peak_bytes=pool.used_peak_bytes,
        largest_free_bytes=pool.largest_free_bytes,
        allocations=pool.allocation_count,
        frees=pool.free_count,
        failures=pool.failure_count,
        wrong_frees=pool.wrong_free_count,
        series_bytes=cluster.history.series.bytes_used(),
        ledger_bytes=cluster.ledger.bytes_used(),
        tails_bytes=cluster.tails.bytes_used(),
        history_level=cluster.history.series.level,
        tails_kept=not cluster.tails.is_stopped,
    )

"""The agents' stream: protobuf to events and straight into the history, commands to protobuf.

The only place that checks an agent's words; what passes here is trusted by the core.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from mass.v1 import agent_pb2, types_pb2

from controller.core.cluster import Cluster
from controller.core.commands import SendFreeze, SendStop, SendWelcome
from controller.core.errors import InvalidRequest, ProtocolMismatch
from controller.core.events import (
    AttemptEnded,
    AttemptFrozen,
    AttemptStarted,
    GuardActed,
    NodeJoined,
)
from controller.core.history import INDEX
from controller.core.limits import PROTOCOL_VERSION, SECOND_NS, Limits
from controller.core.metrics import CUSTOM_METRICS_MAX, CUSTOM_NAME, CUSTOM_NAME_RULE
from controller.core.model import (
    GuardStep,
    GuardStepKind,
    KnownAttempt,
    OomCause,
    OutputStream,
    Task,
)
from controller.core.nodes import NodeRecord

log = logging.getLogger(__name__)

NODE_ID = re.compile(r"[A-Za-z0-9._-]{1,63}")
NODE_ID_RULE = "1 to 63 letters, digits, '.', '_' or '-'"
ATTEMPTS_MAX = 10_000
LABELS_MAX = 64
CAPABILITIES_MAX = 64
LABEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,62}", re.ASCII)
LABEL_VALUE_LENGTH_MAX = 63
GPUS_MAX = 1_024
ERROR_TEXT_LENGTH_MAX = 2_048
GUARD_STEPS_MAX = 1_000  # of one message
GUARD_REASON_LENGTH_MAX = 500
IDENTITY_LENGTH_MAX = 128
BYTES_MAX = 1 << 50
# An agent takes no message above 16 MiB, and one task may have 256 KiB of words and variables.
ASSIGNMENTS_BYTES_MAX = 4 << 20
CUSTOM_VALUE_MAX = 1e30  # beyond it the series takes a value for not reported
OUTPUT_BYTES_MAX = 64 << 10
SAMPLE_AGE_MAX_NS = 3_600 * SECOND_NS  # of the oldest sample in a batch, before its newest
SECONDS_MAX = 253_402_300_799  # the end of the year 9999, where Timestamp ends

TOTAL, AVAILABLE = INDEX["mem_total"], INDEX["mem_available"]
USED, PERCENT = INDEX["mem_used"], INDEX["mem_percent"]
FOREIGN, RESERVED = INDEX["mem_foreign"], INDEX["mem_reserved"]
RUNNING, TASK_MAX = INDEX["tasks_running"], INDEX["task_mem_max"]
SWAP_USED, SWAP_PERCENT = INDEX["swap_used"], INDEX["swap_percent"]
# Fields that go into the row as they are, with the largest value they may have.
PLAIN = tuple(
    (field, INDEX[metric], bound)
    for field, metric, bound in (
        ("psi_some_percent", "psi_some", 100.0),
        ("psi_full_percent", "psi_full", 100.0),
        ("cpu_percent", "cpu_percent", 100.0),
        ("load1", "load1", 1e9),
        ("load5", "load5", 1e9),
        ("load15", "load15", 1e9),
        ("disk_percent", "disk_percent", 100.0),
        ("oom_kills", "oom_kills", 1e15),
    )
)
OOM_CAUSES = {
    types_pb2.OOM_CAUSE_UNSPECIFIED: OomCause.NONE,
    types_pb2.OOM_CAUSE_OWN_LIMIT: OomCause.OWN_LIMIT,
    types_pb2.OOM_CAUSE_BYSTANDER: OomCause.BYSTANDER,
    types_pb2.OOM_CAUSE_GUARD: OomCause.GUARD,
    types_pb2.OOM_CAUSE_OUTSIDE: OomCause.OUTSIDE,
    types_pb2.OOM_CAUSE_CHILD_ONLY: OomCause.CHILD_ONLY,
}
GUARD_STEPS = {
    agent_pb2.GuardStepKind.Value(f"GUARD_STEP_KIND_{kind.value}"): kind for kind in GuardStepKind
}
STREAMS = {
    types_pb2.OUTPUT_STREAM_UNSPECIFIED: OutputStream.STDOUT,
    types_pb2.OUTPUT_STREAM_STDOUT: OutputStream.STDOUT,
    types_pb2.OUTPUT_STREAM_STDERR: OutputStream.STDERR,
}


def joined(hello: agent_pb2.Hello, at_ns: int, stream: int) -> NodeJoined:
    """Return the event of a hello.

    Raises:
        ProtocolMismatch: the agent speaks another version.
        InvalidRequest: a field cannot be; the message names it, its value and the bound.
    """
    if hello.protocol_version != PROTOCOL_VERSION:
        raise ProtocolMismatch(
            f"the agent speaks protocol version {hello.protocol_version}, this controller"
            f" speaks {PROTOCOL_VERSION}; install the same version of MASS on both"
        )
    if not NODE_ID.fullmatch(hello.node_id):
        raise InvalidRequest(f"hello.node_id '{hello.node_id[:80]}' is not {NODE_ID_RULE}")
    for name in ("instance_id", "machine_id", "boot_id", "agent_version", "enforcement"):
        _text(f"hello.{name}", getattr(hello, name))
    if hello.cluster_id:  # an agent that was never welcome knows none
        _text("hello.cluster_id", hello.cluster_id)
    _within("hello.memory_total_bytes", hello.memory_total_bytes, 1, BYTES_MAX)
    _within("hello.memory_capacity_bytes", hello.memory_capacity_bytes, 0, BYTES_MAX)
    if not 0 < hello.cpus <= 4_096:
        raise InvalidRequest(f"hello.cpus is {hello.cpus:g}; it must be above 0, at most 4096")
    _within("hello.gpus", hello.gpus, 0, GPUS_MAX)
    _check_labels(hello.labels)
    _within("the number of hello.attempts", len(hello.attempts), 0, ATTEMPTS_MAX)
    _within("the number of hello.capabilities", len(hello.capabilities), 0, CAPABILITIES_MAX)
    for word in hello.capabilities:
        _text("hello.capabilities", word)
    _within("the number of hello.custom_metrics", len(hello.custom_metrics), 0, CUSTOM_METRICS_MAX)
    return NodeJoined(
        at_ns=at_ns,
        node_id=hello.node_id,
        instance_id=hello.instance_id,
        machine_id=hello.machine_id,
        boot_id=hello.boot_id,
        agent_version=hello.agent_version,
        memory_total_bytes=hello.memory_total_bytes,
        memory_declared_bytes=hello.memory_capacity_bytes or None,
        cpus=hello.cpus,
        enforcement=hello.enforcement,
        attempts=tuple(_known(attempt) for attempt in hello.attempts),
        stream=stream,
        labels=dict(hello.labels),
        gpus=hello.gpus,
        cluster_id=hello.cluster_id,
        capabilities=tuple(hello.capabilities),
        holds_ahead=hello.holds_ahead,
    )


def _check_labels(labels: Mapping[str, str]) -> None:
    _within("the number of hello.labels", len(labels), 0, LABELS_MAX)
    for name, value in labels.items():
        if not LABEL_NAME.fullmatch(name):
            raise InvalidRequest(f"hello.labels '{name[:80]}' is no name of a label")
        if len(value) > LABEL_VALUE_LENGTH_MAX or not (value == "" or value.isprintable()):
            raise InvalidRequest(
                f"hello.labels {name} '{value[:80]}' must be at most {LABEL_VALUE_LENGTH_MAX}"
                " printable characters"
            )


def _known(attempt: agent_pb2.KnownAttempt) -> KnownAttempt:
    _within("hello.attempts.task_id", attempt.task_id, 1, 1 << 62)
    _within("hello.attempts.attempt", attempt.attempt, 1, 1 << 30)
    return KnownAttempt(attempt.task_id, attempt.attempt, attempt.ended)


def write_samples(
    cluster: Cluster, record: NodeRecord, batch: agent_pb2.SampleBatch, now_ns: int
) -> None:
    """Write a batch into the series, and its task readings into the ledger.

    Times are the controller's own: the newest sample is now, older ones by their distance to it.

    Raises:
        InvalidRequest: a field cannot be; samples before it are kept.
    """
    if not batch.samples:
        return
    newest = batch.samples[-1].taken_at_unix_ns
    for sample in batch.samples:
        age_ns = newest - sample.taken_at_unix_ns
        if age_ns < 0:
            raise InvalidRequest("samples are not in the order of taken_at_unix_ns")
        _within("the age of a sample by taken_at_unix_ns", age_ns, 0, SAMPLE_AGE_MAX_NS)
        _write_sample(cluster, record, sample, now_ns - age_ns)
    cluster.touch(record, now_ns, sampled=True)


def _write_sample(
    cluster: Cluster, record: NodeRecord, sample: agent_pb2.Sample, at_ns: int
) -> None:
    slot = record.slot
    largest = _write_readings(cluster, record, sample)
    row = cluster.history.begin()
    if sample.HasField("memory_total_bytes") and sample.HasField("memory_available_bytes"):
        total, available = sample.memory_total_bytes, sample.memory_available_bytes
        if not 0 < total <= BYTES_MAX or not 0 <= available <= total:
            raise InvalidRequest(
                f"sample.memory_available_bytes is {available} of memory_total_bytes {total}"
            )
        used = total - available
        row[TOTAL], row[AVAILABLE], row[USED] = total, available, used
        row[PERCENT] = 100.0 * used / total
        row[FOREIGN] = max(0, used - _tasks_used(cluster, slot))
        cluster.table.total_bytes[slot] = total
        cluster.table.measured(slot)
    cluster.table.intake_stopped[slot] = sample.intake_stopped
    if sample.HasField("swap_total_bytes") and sample.HasField("swap_used_bytes"):
        swap_total, swap_used = sample.swap_total_bytes, sample.swap_used_bytes
        if not 0 <= swap_used <= swap_total <= BYTES_MAX:
            raise InvalidRequest(
                f"sample.swap_used_bytes is {swap_used} of swap_total_bytes {swap_total}"
            )
        row[SWAP_USED] = swap_used
        row[SWAP_PERCENT] = 100.0 * swap_used / swap_total if swap_total > 0 else 0.0
    if sample.HasField("memory_growth_bytes_per_second"):
        growth = sample.memory_growth_bytes_per_second
        if not abs(growth) <= BYTES_MAX:  # so that NaN is refused too
            raise InvalidRequest(
                f"sample.memory_growth_bytes_per_second is {growth:g}; it must be"
                f" -{BYTES_MAX} to {BYTES_MAX}"
            )
        row[INDEX["mem_growth"]] = growth
    for field, index, bound in PLAIN:
        if sample.HasField(field):
            value = getattr(sample, field)
            if not 0 <= value <= bound * 1.001:
                raise InvalidRequest(f"sample.{field} is {value:g}; it must be 0 to {bound:g}")
            row[index] = value
    row[RESERVED] = cluster.ledger.reserved_bytes[slot]
    row[RUNNING] = len(sample.task_ids)
    row[TASK_MAX] = largest
    if sample.custom_metrics:
        _write_custom(cluster, record, sample.custom_metrics, row)
    cluster.history.write(slot, at_ns)


def _write_custom(
    cluster: Cluster, record: NodeRecord, values: Mapping[str, float], row: Any
) -> None:
    """Write what --metric measured; a name that no rule file declares is ignored and told once."""
    _within("the number of sample.custom_metrics", len(values), 0, CUSTOM_METRICS_MAX)
    for name, value in values.items():
        if not CUSTOM_NAME.fullmatch(name):
            raise InvalidRequest(f"sample.custom_metrics '{name[:80]}' is not {CUSTOM_NAME_RULE}")
        if not abs(value) <= CUSTOM_VALUE_MAX:  # so that NaN is refused too
            raise InvalidRequest(
                f"sample.custom_metrics {name} is {value:g}; it must be"
                f" -{CUSTOM_VALUE_MAX:g} to {CUSTOM_VALUE_MAX:g}"
            )
        place = cluster.history.custom.get(name)
        if place is not None:
            row[place] = value
        elif name not in record.undeclared and len(record.undeclared) < CUSTOM_METRICS_MAX:
            record.undeclared.add(name)
            log.warning(
                "metric ignored, no rule file declares it node=%s metric=%s", record.node.id, name
            )


def _write_readings(cluster: Cluster, record: NodeRecord, sample: agent_pb2.Sample) -> int:
    """Write what each task uses into its reservation and return the largest, in bytes.

    A task that the sample does not list uses nothing any more: a sample without it comes before
    the report of its end, and what it used must not be taken off the machine's use once again.
    """
    ids, attempts = sample.task_ids, sample.task_attempts
    readings = sample.task_memory_used_bytes
    if not len(ids) == len(attempts) == len(readings) or len(ids) > ATTEMPTS_MAX:
        raise InvalidRequest(
            f"sample has {len(ids)} task_ids, {len(attempts)} task_attempts and {len(readings)}"
            f" task_memory_used_bytes; they must be equal, at most {ATTEMPTS_MAX}"
        )
    largest: int = max(readings, default=0)
    if largest > BYTES_MAX or min(readings, default=0) < 0:
        wrong = next(place for place, used in enumerate(readings) if not 0 <= used <= BYTES_MAX)
        raise InvalidRequest(
            f"sample.task_memory_used_bytes of task {ids[wrong]} is {readings[wrong]}"
        )
    if not record.task_ids:
        return largest  # whatever runs there is none of ours
    handle_of = cluster.reservations.get
    unlisted = set(record.task_ids)
    for task_id, attempt, used in zip(ids, attempts, readings, strict=True):
        handle = handle_of(task_id)
        if handle is not None and cluster.tasks[task_id].attempt == attempt:
            cluster.ledger.measure(handle, used)
            unlisted.discard(task_id)
    for task_id in unlisted:
        cluster.ledger.measure(cluster.reservations[task_id], 0)
    return largest


def _tasks_used(cluster: Cluster, slot: int) -> int:
    used = cluster.ledger.used_bytes
    if not cluster.table.machines_shared:
        return int(used[slot])
    return sum(int(used[other]) for other in cluster.table.neighbours(slot))


def report(
    message: agent_pb2.Report, node_id: str, at_ns: int, stream: int | None = None
) -> AttemptStarted | AttemptFrozen | AttemptEnded:
    """Return the event of a report that came on a stream of the node.

    Raises:
        InvalidRequest: a field cannot be; the message names it, its value and the bound.
    """
    _within("report.sequence", message.sequence, 1, 1 << 62)
    _within("report.task_id", message.task_id, 1, 1 << 62)
    _within("report.attempt", message.attempt, 1, 1 << 30)
    kind = message.WhichOneof("event")
    if kind == "started":
        return AttemptStarted(
            at_ns=at_ns,
            node_id=node_id,
            sequence=message.sequence,
            task_id=message.task_id,
            attempt=message.attempt,
            started_at_ns=_instant("report.started.started_at", message.started.started_at),
            stream=stream,
        )
    if kind == "frozen":
        return AttemptFrozen(
            at_ns=at_ns,
            node_id=node_id,
            sequence=message.sequence,
            task_id=message.task_id,
            attempt=message.attempt,
            paused=message.frozen.paused,
            stream=stream,
        )
    if kind != "ended":
        raise InvalidRequest(f"report {message.sequence} has neither started nor ended nor frozen")
    ended = message.ended
    _within("report.ended.memory_peak_bytes", ended.memory_peak_bytes, 0, BYTES_MAX)
    return AttemptEnded(
        at_ns=at_ns,
        node_id=node_id,
        sequence=message.sequence,
        task_id=message.task_id,
        attempt=message.attempt,
        exit_code=ended.exit_code if ended.HasField("exit_code") else None,
        signal=ended.signal if ended.HasField("signal") else None,
        memory_peak_bytes=ended.memory_peak_bytes,
        oom_kill_count=max(0, ended.oom_kill_count),
        oom_cause=OOM_CAUSES.get(ended.oom_cause, OomCause.NONE),
        started_at_ns=_instant("report.ended.started_at", ended.started_at),
        ended_at_ns=_instant("report.ended.ended_at", ended.ended_at) or at_ns,
        timed_out=ended.timed_out,
        stopped=ended.stopped,
        agent_stopped=ended.agent_stopped,
        start_error=ended.start_error[:1_000],
        stdout_tail=ended.stdout_tail[-OUTPUT_BYTES_MAX:],
        stderr_tail=ended.stderr_tail[-OUTPUT_BYTES_MAX:],
        stream=stream,
        error_text=_printable(ended.error_text[-ERROR_TEXT_LENGTH_MAX:]),
        guard_reason=_printable(ended.guard.reason[:GUARD_REASON_LENGTH_MAX]),
    )


def guard_acted(message: agent_pb2.GuardStepBatch, node_id: str, at_ns: int) -> GuardActed:
    """Return the event of what a node's guard did.

    Raises:
        InvalidRequest: a field cannot be; the message names it, its value and the bound.
    """
    _within("the number of guard_steps.steps", len(message.steps), 0, GUARD_STEPS_MAX)
    return GuardActed(at_ns, node_id, tuple(_guard_step(step) for step in message.steps))


def _guard_step(step: agent_pb2.GuardStep) -> GuardStep:
    kind = GUARD_STEPS.get(step.kind)
    if kind is None:
        raise InvalidRequest(f"guard_steps.kind {step.kind} is none that is known")
    _within("guard_steps.task_id", step.task_id, 0, 1 << 62)
    for field in ("memory_used_bytes", "memory_limit_bytes", "task_memory_used_bytes"):
        _within(f"guard_steps.{field}", getattr(step, field), 0, BYTES_MAX)
    for field in ("memory_growth_bytes_per_second", "seconds_to_full", "psi_full_percent"):
        if not abs(getattr(step, field)) <= BYTES_MAX:  # so that NaN is refused too
            raise InvalidRequest(f"guard_steps.{field} is {getattr(step, field):g}")
    return GuardStep(
        taken_at_ns=max(0, step.taken_at_unix_ns),
        kind=kind,
        task_id=step.task_id,
        attempt=max(0, step.attempt),
        used_bytes=step.memory_used_bytes,
        limit_bytes=step.memory_limit_bytes,
        growth_bytes_per_second=step.memory_growth_bytes_per_second,
        seconds_to_full=step.seconds_to_full if step.HasField("seconds_to_full") else None,
        psi_full_percent=step.psi_full_percent if step.HasField("psi_full_percent") else None,
        task_used_bytes=step.task_memory_used_bytes,
        reason=_printable(step.reason[:GUARD_REASON_LENGTH_MAX]),
    )


def _printable(text: str) -> str:
    """Return a task's words as one line that cannot steer a terminal."""
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def write_output(cluster: Cluster, chunk: agent_pb2.OutputChunk) -> None:
    """Keep new output of a running attempt in its tail."""
    stream = STREAMS.get(chunk.stream, OutputStream.STDOUT)
    cluster.append_tail(chunk.task_id, chunk.attempt, stream, chunk.data[-OUTPUT_BYTES_MAX:])


def sampling(limits: Limits) -> agent_pb2.ControllerMessage:
    """Return the message that says how often to sample."""
    return agent_pb2.ControllerMessage(sampling=_sampling(limits))


def _sampling(limits: Limits) -> agent_pb2.Sampling:
    return agent_pb2.Sampling(
        sample_interval=duration(limits.sample_interval_ns),
        heartbeat_interval=duration(limits.heartbeat_ns),
    )


def welcome(
    command: SendWelcome, limits: Limits, cluster_id: str = ""
) -> agent_pb2.ControllerMessage:
    """Return the message that answers a hello."""
    return agent_pb2.ControllerMessage(
        welcome=agent_pb2.Welcome(
            protocol_version=PROTOCOL_VERSION,
            sampling=_sampling(limits),
            attempt_lease=duration(limits.attempt_lease_ns),
            acknowledged_sequence=command.acknowledged_sequence,
            cluster_id=cluster_id,
            forget=[
                agent_pb2.KnownAttempt(task_id=known.task_id, attempt=known.attempt)
                for known in command.forget
            ],
            memory_capacity_bytes=command.memory_capacity_bytes,
        )
    )


def assignments(tasks: Iterable[Task], limits: Limits) -> list[agent_pb2.ControllerMessage]:
    """Return the messages that give attempts to their node: one, or more where they are large."""
    messages: list[agent_pb2.ControllerMessage] = []
    size_bytes = ASSIGNMENTS_BYTES_MAX  # of the last message
    for task in tasks:
        if size_bytes >= ASSIGNMENTS_BYTES_MAX:
            messages.append(agent_pb2.ControllerMessage())
            size_bytes = 0
        spec = task.spec
        assignment = messages[-1].assignments.assignments.add(
            task_id=task.id,
            attempt=task.attempt,
            command=spec.command,
            environment=dict(spec.environment),
            working_directory=spec.working_directory,
            memory_limit_bytes=task.memory_limit_bytes or 0,
            memory_request_bytes=task.memory_size_bytes,
            memory_elastic=task.memory_elastic,
            memory_expected_peak_bytes=task.memory_expected_peak_bytes,
            priority=task.priority,
            no_requeue=not spec.requeue,
            oom_group=spec.oom_group,
            cpus=spec.cpus,
            grace=duration(limits.cancel_grace_ns),
            stdout_path=spec.stdout_path,
            stderr_path=spec.stderr_path,
            gpu_indexes=task.gpu_indexes,
            array_id=task.array_id,
            array_index=task.array_index,
            task_label=task.label,
            ahead=task.is_ahead,
        )
        if spec.time_limit_ns is not None:
            assignment.time_limit.CopyFrom(duration(spec.time_limit_ns))
        size_bytes += assignment.ByteSize()
    return messages


def stop(command: SendStop) -> agent_pb2.ControllerMessage:
    """Return the message that ends an attempt."""
    return agent_pb2.ControllerMessage(
        stop=agent_pb2.Stop(
            task_id=command.task_id,
            attempt=command.attempt,
            grace=duration(command.grace_ns),
            only_held=command.only_held,
        )
    )


def freeze(command: SendFreeze) -> agent_pb2.ControllerMessage:
    """Return the message that pauses an attempt, or lets it go on."""
    return agent_pb2.ControllerMessage(
        freeze=agent_pb2.Freeze(
            task_id=command.task_id, attempt=command.attempt, paused=command.paused
        )
    )


def acknowledgement(sequence: int) -> agent_pb2.ControllerMessage:
    """Return the message that lets an agent forget its reports up to a sequence number."""
    return agent_pb2.ControllerMessage(acknowledgement=agent_pb2.Acknowledgement(sequence=sequence))


def duration(nanoseconds: int) -> Duration:
    """Return nanoseconds as a protobuf Duration."""
    value = Duration()
    value.FromNanoseconds(nanoseconds)
    return value


def timestamp(at_ns: int) -> Timestamp:
    """Return nanoseconds since the epoch as a protobuf Timestamp."""
    value = Timestamp()
    value.FromNanoseconds(at_ns)
    return value


def _instant(name: str, value: Timestamp) -> int:
    """Return nanoseconds since the epoch; 0 where the field is absent."""
    _within(f"{name}.seconds", value.seconds, 0, SECONDS_MAX)
    _within(f"{name}.nanos", value.nanos, 0, SECOND_NS - 1)
    return value.seconds * SECOND_NS + value.nanos


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidRequest(f"{name} is {value}; it must be {low} to {high}")


def _text(name: str, value: str) -> None:
    if not 1 <= len(value) <= IDENTITY_LENGTH_MAX or not value.isprintable():
        raise InvalidRequest(
            f"{name} '{value[:80]}' must be 1 to {IDENTITY_LENGTH_MAX} printable characters"
        )

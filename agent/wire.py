"""Protobuf to lifecycle events and back.

Owns the check of the controller's words and the shape of everything the agent says. The rule kept:
what cannot be meant is refused here with a sentence, so the rest of the agent trusts its values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from mass.v1 import agent_pb2, types_pb2

from agent.attempt import (
    Assigned,
    Assignment,
    Ended,
    FreezeAsked,
    Frozen,
    GuardStep,
    Key,
    Report,
    StopAsked,
    Welcomed,
)
from agent.sampler import Sample

PROTOCOL_VERSION = 1
SECOND_NS = 1_000_000_000
DURATION_MAX_NS = 10 * 366 * 86_400 * SECOND_NS
TASK_ID_MAX = (1 << 63) - 1
INTERVAL_MIN_NS = 50_000_000
INTERVAL_MAX_NS = 3_600 * SECOND_NS
LEASE_MIN_NS = SECOND_NS
ERROR_LENGTH_MAX = 4_096
REASON_LENGTH_MAX = 1_024
LOG_BYTES_MAX = 256 * 1024
LOG_BYTES_DEFAULT = 64 * 1024
TAIL_BYTES_MAX = 64 * 1024

STDOUT = types_pb2.OUTPUT_STREAM_STDOUT
STDERR = types_pb2.OUTPUT_STREAM_STDERR


class WireError(Exception):
    """The controller said what cannot be meant; the stream must end, a new one may be in step."""


class ProtocolMismatch(WireError):
    """The controller speaks another version; only installing the same one on both helps."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How often to sample and, at the latest, to send."""

    interval_ns: int
    heartbeat_ns: int


@dataclass(frozen=True, slots=True)
class Welcome:
    """The controller's answer to the hello."""

    event: Welcomed
    sampling: Sampling
    attempt_lease_ns: int
    memory_capacity_bytes: int | None = None  # of all attempts together; None: not known
    cluster_id: str = ""  # an older controller has none


@dataclass(frozen=True, slots=True)
class Identity:
    """What a hello says about node, machine and agent."""

    node_id: str
    instance_id: str
    machine_id: str
    boot_id: str
    agent_version: str
    memory_total_bytes: int
    memory_capacity_bytes: int
    cpus: float
    enforcement: str
    capabilities: tuple[str, ...]
    custom_metrics: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    gpus: int = 0


# Down.


def decode_welcome(message: agent_pb2.Welcome) -> Welcome:
    """Return the welcome. Raises WireError for another protocol or an impossible interval."""
    if message.protocol_version != PROTOCOL_VERSION:
        raise ProtocolMismatch(
            f"the controller speaks protocol {message.protocol_version}, this agent "
            f"{PROTOCOL_VERSION}: install the same version on both"
        )
    lease_ns = _duration_ns(message.attempt_lease, "attempt_lease")
    if lease_ns < LEASE_MIN_NS:
        raise WireError(f"attempt_lease is {lease_ns} ns, at least {LEASE_MIN_NS} is needed")
    if message.memory_capacity_bytes < 0:
        raise WireError(f"memory_capacity_bytes is {message.memory_capacity_bytes}, at least 0")
    forget = tuple(_key(known.task_id, known.attempt) for known in message.forget)
    return Welcome(
        Welcomed(message.acknowledged_sequence, forget),
        decode_sampling(message.sampling),
        lease_ns,
        message.memory_capacity_bytes or None,
        message.cluster_id,
    )


def decode_sampling(message: agent_pb2.Sampling) -> Sampling:
    """Return the intervals. Raises WireError outside of 50 ms to 1 h."""
    intervals = (
        _duration_ns(message.sample_interval, "sample_interval"),
        _duration_ns(message.heartbeat_interval, "heartbeat_interval"),
    )
    for interval_ns in intervals:
        if not INTERVAL_MIN_NS <= interval_ns <= INTERVAL_MAX_NS:
            raise WireError(f"a sampling interval is {interval_ns} ns, 50 ms to 1 h can be kept")
    return Sampling(*intervals)


def decode_assignment(message: agent_pb2.Assignment) -> Assigned:
    """Return the event. What makes one attempt impossible is its error and ends only this one.

    Raises:
        WireError: it does not even say which attempt it is.
    """
    key = _key(message.task_id, message.attempt)
    error = _assignment_error(message)
    if error:
        return Assigned(Assignment(key, ()), f"the assignment {error}")
    limited = message.HasField("time_limit")
    return Assigned(
        Assignment(
            key=key,
            command=tuple(message.command),
            environment=dict(message.environment),
            working_directory=message.working_directory,
            memory_limit_bytes=message.memory_limit_bytes or None,
            memory_request_bytes=message.memory_request_bytes,
            cpus=message.cpus,
            time_limit_ns=_nanoseconds(message.time_limit) if limited else None,
            grace_ns=_nanoseconds(message.grace),
            stdout_path=message.stdout_path,
            stderr_path=message.stderr_path,
            gpu_indexes=tuple(message.gpu_indexes),
            array_id=message.array_id,
            array_index=message.array_index,
            label=message.task_label or str(message.task_id),
            memory_elastic=message.memory_elastic,
            memory_expected_peak_bytes=message.memory_expected_peak_bytes,
            priority=message.priority,
            no_requeue=message.no_requeue,
            oom_group=message.oom_group,
            ahead=message.ahead,
        )
    )


def decode_stop(message: agent_pb2.Stop) -> StopAsked:
    """Return the event. Raises WireError for an impossible attempt or grace."""
    key = _key(message.task_id, message.attempt)
    return StopAsked(key, _duration_ns(message.grace, "grace"), message.only_held)


def decode_freeze(message: agent_pb2.Freeze) -> FreezeAsked:
    """Return the event. Raises WireError for an impossible attempt."""
    return FreezeAsked(_key(message.task_id, message.attempt), message.paused)


def _assignment_error(message: agent_pb2.Assignment) -> str:
    """Return why the attempt cannot be started, empty when it can."""
    if not message.command or not message.command[0]:
        return "has no command"
    if message.working_directory and not message.working_directory.startswith("/"):
        return f"has working directory {message.working_directory!r}, it must be absolute"
    for path in (message.stdout_path, message.stderr_path):
        if path and not path.startswith("/"):
            return f"has the output {path!r}, it must be absolute"
    sizes = (
        message.memory_limit_bytes,
        message.memory_request_bytes,
        message.memory_expected_peak_bytes,
    )
    if min(sizes) < 0:
        return "has a negative size of memory"
    if not 0 <= message.cpus <= 1e6:
        return f"has {message.cpus} cpus"
    if not 0 <= _nanoseconds(message.grace) <= DURATION_MAX_NS:
        return f"has a grace of {message.grace.seconds} s"
    if message.HasField("time_limit") and not (
        0 < _nanoseconds(message.time_limit) <= DURATION_MAX_NS
    ):
        return f"has a time limit of {message.time_limit.seconds} s"
    return ""


def _key(task_id: int, attempt: int) -> Key:
    if not 1 <= task_id <= TASK_ID_MAX or attempt < 1:
        raise WireError(f"task {task_id} attempt {attempt} cannot be: both count from 1")
    return task_id, attempt


def _duration_ns(duration: Duration, name: str) -> int:
    duration_ns = _nanoseconds(duration)
    if not 0 <= duration_ns <= DURATION_MAX_NS:
        raise WireError(f"{name} is {duration_ns} ns, 0 to {DURATION_MAX_NS} can be kept")
    return duration_ns


def _nanoseconds(duration: Duration) -> int:
    return duration.seconds * SECOND_NS + duration.nanos


# Up.


def encode_hello(
    identity: Identity, known: Iterable[tuple[Key, bool]], cluster_id: str = ""
) -> agent_pb2.AgentMessage:
    """Return the first message of a stream; `known` are attempts of that cluster and whether they
    have ended."""
    return agent_pb2.AgentMessage(
        hello=agent_pb2.Hello(
            protocol_version=PROTOCOL_VERSION,
            node_id=identity.node_id,
            instance_id=identity.instance_id,
            machine_id=identity.machine_id,
            boot_id=identity.boot_id,
            agent_version=identity.agent_version,
            memory_total_bytes=identity.memory_total_bytes,
            memory_capacity_bytes=identity.memory_capacity_bytes,
            cpus=identity.cpus,
            enforcement=identity.enforcement,
            capabilities=identity.capabilities,
            labels=dict(identity.labels),
            gpus=identity.gpus,
            custom_metrics=identity.custom_metrics,
            cluster_id=cluster_id,
            holds_ahead=True,
            attempts=(
                agent_pb2.KnownAttempt(task_id=key[0], attempt=key[1], ended=ended)
                for key, ended in known
            ),
        )
    )


def encode_samples(samples: Iterable[Sample]) -> agent_pb2.AgentMessage:
    """Return a batch, oldest first."""
    return agent_pb2.AgentMessage(
        samples=agent_pb2.SampleBatch(samples=[_sample(sample) for sample in samples])
    )


def _sample(sample: Sample) -> agent_pb2.Sample:
    memory = sample.memory
    return agent_pb2.Sample(
        taken_at_unix_ns=sample.taken_at_unix_ns,
        memory_total_bytes=memory.total_bytes,
        memory_available_bytes=memory.available_bytes,
        swap_total_bytes=memory.swap_total_bytes,
        swap_used_bytes=memory.swap_used_bytes,
        psi_some_percent=sample.psi_some_percent,
        psi_full_percent=sample.psi_full_percent,
        cpu_percent=sample.cpu_percent,
        load1=sample.load1,
        load5=sample.load5,
        load15=sample.load15,
        disk_percent=sample.disk_percent,
        memory_growth_bytes_per_second=sample.memory_growth_bytes_per_second,
        oom_kills=sample.oom_kills,
        task_ids=[key[0] for key in sample.tasks],
        task_attempts=[key[1] for key in sample.tasks],
        task_memory_used_bytes=list(sample.tasks.values()),
        custom_metrics=sample.custom,
        intake_stopped=sample.intake_stopped,
    )


def encode_guard_steps(steps: Iterable[GuardStep]) -> agent_pb2.AgentMessage:
    """Return a batch, oldest first."""
    return agent_pb2.AgentMessage(
        guard_steps=agent_pb2.GuardStepBatch(steps=[_guard_step(step) for step in steps])
    )


def _guard_step(step: GuardStep) -> agent_pb2.GuardStep:
    task_id, attempt = step.key or (0, 0)
    return agent_pb2.GuardStep(
        taken_at_unix_ns=step.taken_at_ns,
        kind=f"GUARD_STEP_KIND_{step.kind.name}",
        task_id=task_id,
        attempt=attempt,
        memory_used_bytes=step.memory_used_bytes,
        memory_limit_bytes=step.memory_limit_bytes,
        memory_growth_bytes_per_second=step.memory_growth_bytes_per_second,
        seconds_to_full=step.seconds_to_full,
        psi_full_percent=step.psi_full_percent,
        task_memory_used_bytes=step.task_memory_used_bytes,
        reason=step.reason[:REASON_LENGTH_MAX],
    )


def encode_report(
    report: Report,
    tail: Callable[[Key, int], bytes],
    error_text: Callable[[Key], str] | None = None,
) -> agent_pb2.Report:
    """Return a report; `tail` gives the end of one output of an ended attempt, `error_text` what
    it left in its MASS_ERROR_FILE."""
    message = agent_pb2.Report(
        sequence=report.sequence, task_id=report.key[0], attempt=report.key[1]
    )
    if isinstance(report.event, Frozen):
        message.frozen.paused = report.event.paused
        return message
    if not isinstance(report.event, Ended):
        message.started.pid = report.event.pid
        message.started.started_at.CopyFrom(_timestamp(report.event.started_at_ns))
        return message
    ended, outcome = report.event, report.event.outcome
    body = agent_pb2.AttemptEnded(
        exit_code=outcome.exit_code,
        signal=outcome.signal,
        memory_peak_bytes=outcome.memory_peak_bytes,
        oom_kill_count=outcome.oom_kill_count,
        oom_cause=f"OOM_CAUSE_{ended.oom_cause.name}",
        started_at=_timestamp(outcome.started_at_ns) if outcome.started_at_ns else None,
        ended_at=_timestamp(outcome.ended_at_ns),
        timed_out=ended.timed_out,
        stopped=ended.stopped,
        agent_stopped=ended.agent_stopped,
        start_error=outcome.start_error[:ERROR_LENGTH_MAX],
        guard=None if ended.guard is None else _guard_step(ended.guard),
    )
    if outcome.started_at_ns:
        body.stdout_tail = tail(report.key, STDOUT)
        body.stderr_tail = tail(report.key, STDERR)
        if error_text is not None:
            body.error_text = error_text(report.key)
    message.ended.CopyFrom(body)
    return message


def encode_reports(reports: Iterable[agent_pb2.Report]) -> agent_pb2.AgentMessage:
    """Return a batch in the order of the sequence numbers."""
    return agent_pb2.AgentMessage(reports=agent_pb2.ReportBatch(reports=reports))


def encode_goodbye(reason: str) -> agent_pb2.AgentMessage:
    """Return the message that says the agent ends on purpose."""
    return agent_pb2.AgentMessage(goodbye=agent_pb2.Goodbye(reason=reason))


def _timestamp(at_ns: int) -> Timestamp:
    return Timestamp(seconds=at_ns // SECOND_NS, nanos=at_ns % SECOND_NS)

"""Values to save: plain ones by hand, and any that can be by hypothesis."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from hypothesis import strategies as st

from controller.core.model import (
    Alert,
    AlertState,
    Attempt,
    Dependency,
    DependencyKind,
    MemoryReservation,
    Node,
    OomCause,
    Preference,
    Scheduling,
    Submission,
    Task,
    TaskSpec,
    TaskState,
)

INTEGER_MAX = (1 << 63) - 1

_SPEC = TaskSpec(
    command=("sh", "-c", "true"),
    name="sh",
    category="sh",
    memory_request_bytes=1 << 30,
    memory_limit_bytes=None,
)


def stored_task(
    task_id: int, state: TaskState = TaskState.PENDING, *, ended_at_ns: int = 0
) -> Task:
    """Return a plain task."""
    return Task(
        id=task_id,
        spec=_SPEC,
        user="ada",
        state=state,
        submitted_at_ns=1_000 + task_id,
        ended_at_ns=ended_at_ns,
    )


def stored_attempt(task_id: int, number: int = 1) -> Attempt:
    """Return a plain attempt that succeeded."""
    return Attempt(
        task_id=task_id,
        number=number,
        node_id="n1",
        outcome=TaskState.SUCCEEDED,
        assigned_at_ns=1,
        started_at_ns=2,
        ended_at_ns=3,
        exit_code=0,
        signal=None,
        memory_peak_bytes=5,
        memory_limit_bytes=None,
        oom_cause=OomCause.NONE,
        reason="",
    )


def stored_node(node_id: str) -> Node:
    """Return a plain node of 8 GiB."""
    return Node(
        id=node_id,
        machine_id="m1",
        boot_id="b1",
        instance_id="i1",
        agent_version="0.1.0",
        memory_total_bytes=8 << 30,
        memory_declared_bytes=None,
        cpus=2.0,
        enforcement="cgroup v2",
        joined_at_ns=1,
    )


def stored_alert(name: str, node_id: str, state: AlertState = AlertState.FIRING) -> Alert:
    """Return a plain alert."""
    return Alert(
        name=name,
        node_id=node_id,
        state=state,
        labels={"severity": "page"},
        annotations={"summary": "memory is short"},
        value=91.5,
        active_at_ns=1,
        fired_at_ns=2,
    )


def stored_submission(number: int) -> Submission:
    """Return a submission of one task, the number-th."""
    return Submission(request_id=f"r{number}", first_task_id=number, count=1, at_ns=number)


def stored_reservation(number: int, node_id: str = "n1") -> MemoryReservation:
    """Return a plain reservation."""
    return MemoryReservation(number, f"q{number}", node_id, 1 << 30, "cache", "ada", 1, 2)


# Quotes, NUL and any script: whatever a user can put into a command comes back as it was.
words = st.text(max_size=20)
names = st.text(min_size=1, max_size=20)
integers = st.integers(0, INTEGER_MAX)
signed = st.integers(-INTEGER_MAX - 1, INTEGER_MAX)
floats = st.floats(allow_nan=False)
mappings: st.SearchStrategy[Mapping[str, str]] = st.dictionaries(words, words, max_size=4)

specs = st.builds(
    TaskSpec,
    command=st.lists(words, min_size=1, max_size=4).map(tuple),
    name=words,
    category=words,
    memory_request_bytes=integers,
    memory_limit_bytes=st.none() | integers,
    cpus=floats,
    priority=signed,
    time_limit_ns=st.none() | integers,
    retries=integers,
    requeue=st.booleans(),
    environment=mappings,
    working_directory=words,
    constraint=words,
    preference=st.sampled_from(Preference),
    gpus=integers,
    stdout_path=words,
    stderr_path=words,
    hold=st.booleans(),
    retry_delay_ns=integers,
    after=st.lists(
        st.builds(Dependency, task_id=integers, kind=st.sampled_from(DependencyKind)), max_size=3
    ).map(tuple),
    array=words,
    array_running_max=integers,
    memory_declared=st.booleans(),
    memory_exact=st.booleans(),
    input_bytes=st.none() | integers,
    oom_group=st.booleans(),
)
tasks = st.builds(
    Task,
    id=st.integers(1, INTEGER_MAX - 1),
    spec=specs,
    user=words,
    state=st.sampled_from(TaskState),
    submitted_at_ns=integers,
    reason_code=words,
    reason=words,
    attempt=integers,
    node_id=words,
    instance_id=words,
    assigned_at_ns=integers,
    started_at_ns=integers,
    ended_at_ns=integers,
    exit_code=st.none() | signed,
    signal=st.none() | integers,
    memory_peak_bytes=integers,
    memory_limit_bytes=st.none() | integers,
    oom_cause=st.sampled_from(OomCause),
    failures=integers,
    memory_requeues=integers,
    cancelled=st.booleans(),
    array_id=integers,
    array_index=integers,
    not_before_ns=integers,
    gpu_indexes=st.lists(integers, max_size=3).map(tuple),
    priority_set=st.none() | signed,
    memory_size_bytes=integers,
    memory_expected_peak_bytes=integers,
    memory_elastic=st.booleans(),
    memory_reason=words,
    memory_reached_bytes=integers,
    memory_spared=integers,
    guard_kills=integers,
)


def changes_of(task: Task) -> st.SearchStrategy[Task]:
    """Later values of a task: anything may differ but what its submit made."""
    return tasks.map(
        lambda other: replace(
            other,
            id=task.id,
            spec=task.spec,
            user=task.user,
            submitted_at_ns=task.submitted_at_ns,
            array_id=task.array_id,
            array_index=task.array_index,
        )
    )


attempts = st.builds(
    Attempt,
    task_id=st.just(1),
    number=integers,
    node_id=words,
    outcome=st.sampled_from(TaskState),
    assigned_at_ns=integers,
    started_at_ns=integers,
    ended_at_ns=integers,
    exit_code=st.none() | signed,
    signal=st.none() | integers,
    memory_peak_bytes=integers,
    memory_limit_bytes=st.none() | integers,
    oom_cause=st.sampled_from(OomCause),
    reason=words,
    category=words,
    input_bytes=st.none() | integers,
    declared_bytes=st.none() | integers,
    memory_size_bytes=integers,
)
nodes = st.builds(
    Node,
    id=names,
    machine_id=words,
    boot_id=words,
    instance_id=words,
    agent_version=words,
    memory_total_bytes=integers,
    memory_declared_bytes=st.none() | integers,
    cpus=floats,
    enforcement=words,
    joined_at_ns=integers,
    scheduling=st.sampled_from(Scheduling),
    scheduling_reason=words,
    scheduling_by=words,
    scheduling_since_ns=integers,
    labels=mappings,
    gpus=integers,
    drain_deadline_ns=integers,
)
alerts = st.builds(
    Alert,
    name=names,
    node_id=words,
    state=st.sampled_from(sorted(set(AlertState) - {AlertState.INACTIVE}, key=str)),
    labels=mappings,
    annotations=mappings,
    value=floats | st.sampled_from([math.inf, -math.inf]),
    active_at_ns=integers,
    fired_at_ns=integers,
    resolved_at_ns=integers,
    task_id=integers,
)

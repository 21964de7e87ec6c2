"""What happens to tasks: cancelled, started, ended, lost. Each handler changes the
cluster and returns the commands that make the change lasting and known."""

from __future__ import annotations

import signal as signals
from collections import deque

from mass.units import size_words

from controller.core.cluster import Cluster, with_state
from controller.core.commands import (
    Command,
    Reply,
    SaveAttempt,
    SaveOutput,
    SaveTask,
    SendAcknowledgement,
    SendStop,
)
from controller.core.events import AttemptEnded, AttemptFrozen, AttemptStarted, TasksCancelled
from controller.core.learning import by_own_fault, reached
from controller.core.model import (
    AHEAD,
    PLACED_STATES,
    Attempt,
    OomCause,
    OutputStream,
    Task,
    TaskState,
)
from controller.core.needs import rounded_up
from controller.core.renewed import replace

Commands = list[Command]

NODE_DRAINED = "NODE_DRAINED"  # why a task is STOPPING that is to run again elsewhere


def on_tasks_cancelled(cluster: Cluster, event: TasksCancelled) -> Commands:
    """End waiting tasks at once and ask the agents to end the others."""
    commands: Commands = []
    for task_id in event.task_ids:
        task = cluster.tasks.get(task_id)
        if task is None:
            continue  # it has ended meanwhile
        if task.cancelled:
            # Being ended already: the agent lets the shorter of two graces hold.
            commands.append(SendStop(task.node_id, task.id, task.attempt, event.grace_ns))
        elif task.state in PLACED_STATES:
            task = replace(
                with_state(task, TaskState.STOPPING, "CANCELLED", "cancelled by its user"),
                cancelled=True,
            )
            commands.append(SaveTask(task))
            commands.append(SendStop(task.node_id, task.id, task.attempt, event.grace_ns))
            cluster.put_task(task)
        else:
            commands += end(
                cluster, replace(task, cancelled=True), TaskState.CANCELLED, "CANCELLED",
                "cancelled by its user before it started", event.at_ns,
            )  # fmt: skip
    commands.append(Reply(event.task_ids))
    return commands


def on_attempt_started(cluster: Cluster, event: AttemptStarted) -> Commands:
    """Note that the process runs; a report of another attempt changes nothing."""
    if _replaced(cluster, event):
        return []
    commands: Commands = [_acknowledge(cluster, event.node_id, event.sequence)]
    task = _fenced(cluster, event)
    if task is None or task.started_at_ns:
        return commands
    task = replace(task, started_at_ns=_between(task, event.started_at_ns, event.at_ns))
    cluster.learning.started(task, event.at_ns)
    if task.state in (TaskState.ASSIGNED, TaskState.STARTING):
        task = with_state(task, TaskState.RUNNING)
    cluster.put_task(task)
    commands.append(SaveTask(task))
    return commands


def on_attempt_frozen(cluster: Cluster, event: AttemptFrozen) -> Commands:
    """Note that a resumed attempt goes on; what its user wants is decided already."""
    if _replaced(cluster, event):
        return []
    commands: Commands = [_acknowledge(cluster, event.node_id, event.sequence)]
    task = _fenced(cluster, event)
    if task is not None and task.reason_code == "RESUMED" and not event.paused:
        task = with_state(task, task.state)
        cluster.put_task(task)
        commands.append(SaveTask(task))
    return commands


def on_attempt_ended(cluster: Cluster, event: AttemptEnded) -> Commands:
    """Decide what an ended attempt means for its task: an end, or another attempt."""
    if _replaced(cluster, event):
        return []
    commands: Commands = [_acknowledge(cluster, event.node_id, event.sequence)]
    task = _fenced(cluster, event)
    if task is None:
        return commands
    outcome, code, reason = judge(task, event)
    if event.error_text and outcome is not TaskState.SUCCEEDED:
        reason = f"{reason}: {event.error_text}"
    ended_at_ns = _between(task, event.ended_at_ns, event.at_ns)
    if event.started_at_ns:
        started_at_ns = _between(task, event.started_at_ns, ended_at_ns)
        task = replace(task, started_at_ns=started_at_ns)
    cause = OomCause.NONE if outcome is not TaskState.OUT_OF_MEMORY else _cause(task, event)
    task = replace(task, exit_code=event.exit_code, signal=event.signal, oom_cause=cause)
    ended = replace(
        _attempt(task, outcome, reason, ended_at_ns), memory_peak_bytes=event.memory_peak_bytes
    )
    commands.append(SaveAttempt(ended))
    cluster.learning.ended(task, ended)
    cluster.note_freed(task)
    for stream, tail in (
        (OutputStream.STDOUT, event.stdout_tail),
        (OutputStream.STDERR, event.stderr_tail),
    ):
        if tail:
            commands.append(SaveOutput(task.id, task.attempt, stream, tail))
    peak_bytes = max(task.memory_peak_bytes, event.memory_peak_bytes)
    # Of a task that the guard ended before, only what it uses beyond that is news.
    grew = rounded_up(peak_bytes) > rounded_up(task.memory_peak_bytes) or not task.guard_kills
    task = replace(task, memory_peak_bytes=peak_bytes)
    if outcome is TaskState.LOST:
        held_ns = event.at_ns - task.assigned_at_ns
        called_back = code == AHEAD and held_ns >= cluster.limits.ahead_held_max_ns
        if code != NODE_DRAINED and not called_back:
            cluster.close_leaving(task.node_id, event.at_ns)
        return commands + _requeue_or_end(cluster, task, code, reason, event.at_ns)
    if outcome is TaskState.OUT_OF_MEMORY:
        # Nobody was killed: it failed while memory was refused, maybe for another reason.
        harmed = event.oom_kill_count or event.start_error
        doubtful = cause is OomCause.BYSTANDER and not harmed
        if cause is OomCause.GUARD and grew and task.spec.requeue and not task.cancelled:
            cluster.hope(event.at_ns, rounded_up(peak_bytes))
        return commands + after_out_of_memory(cluster, task, ended, code, event.at_ns, doubtful)
    # A cancelled task may fail by itself before the stop reaches it: that is its end too.
    if outcome is TaskState.FAILED and task.failures < task.spec.retries and not task.cancelled:
        again = f"attempt {task.attempt} {reason}; retry {task.failures + 1} of {task.spec.retries}"
        delay_ns = _retry_delay_ns(task, cluster.limits.retry_delay_max_ns)
        task = replace(task, failures=task.failures + 1)
        not_before_ns = event.at_ns + delay_ns if delay_ns else 0
        return commands + _requeue(cluster, task, again, not_before_ns)
    if outcome is TaskState.FAILED:
        task = replace(task, failures=task.failures + 1)
    return commands + end(cluster, task, outcome, code, reason, ended_at_ns)


def judge(task: Task, event: AttemptEnded) -> tuple[TaskState, str, str]:
    """Return what an ended attempt was, with a stable word and a sentence.

    Memory is told from the kernel's counter alone: an exit code of 137 proves nothing.
    """
    if event.start_error:
        return _judge_unstarted(task, event)
    if task.cancelled and event.stopped:
        return TaskState.CANCELLED, "CANCELLED", "cancelled by its user"
    if event.oom_kill_count > 0 or event.oom_cause is not OomCause.NONE:
        code = f"OOM_{_cause(task, event).value}"
        return TaskState.OUT_OF_MEMORY, code, _memory_reason(task, event)
    if event.timed_out:
        seconds = (task.spec.time_limit_ns or 0) / 1e9
        return TaskState.TIMED_OUT, "TIME_LIMIT", f"ran longer than its time limit of {seconds:g} s"
    if event.stopped and task.reason_code == NODE_DRAINED:
        return TaskState.LOST, NODE_DRAINED, f"node {task.node_id} was drained"
    if event.stopped and task.is_ahead and not event.started_at_ns:
        return TaskState.LOST, AHEAD, f"node {task.node_id} gave it back before it had CPUs for it"
    if event.stopped:
        why = "was stopped" if event.agent_stopped else "ended it unasked"
        return TaskState.LOST, "NODE_LOST", f"the agent of node {task.node_id} {why}"
    if event.exit_code == 0:
        return TaskState.SUCCEEDED, "", ""
    return (TaskState.FAILED, *_failure(event.exit_code, event.signal))


def _failure(exit_code: int | None, signal: int | None) -> tuple[str, str]:
    """Return with which word and sentence a task failed by itself."""
    if signal is not None:
        return "SIGNAL", f"ended by signal {_signal_name(signal)}"
    if exit_code is None:
        return "EXIT_CODE", "ended in a way that its agent could not see"
    return "EXIT_CODE", f"exited with code {exit_code}"


def _judge_unstarted(task: Task, event: AttemptEnded) -> tuple[TaskState, str, str]:
    """Return what an attempt was that could not be started: one for want of the node's memory is
    by no fault of its own."""
    if task.cancelled:
        return TaskState.CANCELLED, "CANCELLED", "cancelled by its user before it started"
    if event.stopped and task.reason_code == NODE_DRAINED:
        return TaskState.LOST, NODE_DRAINED, f"node {task.node_id} was drained"
    if event.stopped:
        return TaskState.LOST, "NODE_LOST", f"node {task.node_id}: {event.start_error}"
    if event.oom_cause is not OomCause.NONE:
        why = f"could not be started while node {task.node_id} was out of memory"
        code = f"OOM_{_cause(task, event).value}"
        return TaskState.OUT_OF_MEMORY, code, f"{why}: {event.start_error}"
    return TaskState.FAILED, "START_ERROR", f"could not be started: {event.start_error}"


def lose(cluster: Cluster, task: Task, code: str, reason: str, now_ns: int) -> Commands:
    """Answer the loss of an attempt of which nobody will tell how it ended."""
    # What earlier attempts left behind is not this one's.
    unknown = replace(
        task, exit_code=None, signal=None, memory_peak_bytes=0, oom_cause=OomCause.NONE
    )
    ended = SaveAttempt(_attempt(unknown, TaskState.LOST, reason, now_ns))
    return [ended, *_requeue_or_end(cluster, task, code, reason, now_ns)]


def _requeue_or_end(cluster: Cluster, task: Task, code: str, reason: str, now_ns: int) -> Commands:
    """Run a task with a lost attempt again, without counting it, unless it must not be."""
    if task.cancelled:
        cancelled = "cancelled by its user"
        return end(cluster, task, TaskState.CANCELLED, "CANCELLED", cancelled, now_ns)
    if task.spec.requeue:
        return _requeue(cluster, task, f"attempt {task.attempt} was lost: {reason}")
    reason = f"{reason}, and it must not be requeued"
    return end(cluster, task, TaskState.LOST, code, reason, now_ns)


def after_out_of_memory(
    cluster: Cluster, task: Task, ended: Attempt, code: str, now_ns: int, doubtful: bool
) -> Commands:
    """Run a task again that memory ended, if another attempt can fare better; else end it.

    By its own fault: with more memory, at most memory_requeues_max times; never where the limit
    it hit is its user's own, or its size is exact. By no fault of its own: with the same need a
    little later, bounded by memory_spared_max alone. By a killer outside, or where it is doubtful
    that memory was the reason: the same, but counted like its own fault, for a program that fails
    by itself on a busy node looks like that. A cancelled task, and one that must not be requeued,
    ends.
    """
    reason = ended.reason
    own_fault = by_own_fault(ended)
    counted = own_fault or ended.oom_cause is OomCause.OUTSIDE or doubtful
    hopeless = _hopeless(cluster, task, reached(ended) if own_fault else 0, counted)
    if hopeless is not None:
        reason += hopeless
        if doubtful:
            code, how = _failure(task.exit_code, task.signal)
            reason = f"{how}{hopeless}"
            return end(cluster, task, TaskState.FAILED, code, reason, ended.ended_at_ns)
        return end(cluster, task, TaskState.OUT_OF_MEMORY, code, reason, ended.ended_at_ns)
    again = f"attempt {task.attempt} {reason}"
    count, most = task.memory_requeues + 1, cluster.limits.memory_requeues_max
    if own_fault:
        reached_bytes = max(task.memory_reached_bytes, reached(ended))
        if reached_bytes > task.memory_reached_bytes:
            cluster.hope(now_ns, reached_bytes)
        task = replace(task, memory_requeues=count, memory_reached_bytes=reached_bytes)
        again += f"; again with more memory, {count} of {most}"
        return _requeue(cluster, task, again)
    delay_ns = cluster.limits.memory_spared_delay_ns
    later_ns = now_ns + delay_ns if delay_ns else 0
    if counted:
        again += f"; again, {count} of {most}"
        return _requeue(cluster, replace(task, memory_requeues=count), again, later_ns)
    by_guard = ended.oom_cause is OomCause.GUARD
    task = replace(
        task,
        memory_spared=task.memory_spared + 1,
        guard_kills=task.guard_kills + by_guard,
    )
    again += "; by no fault of its own: again, not counted"
    return _requeue(cluster, task, again, 0 if by_guard else later_ns)


def _hopeless(cluster: Cluster, task: Task, reached_bytes: int, counted: bool) -> str | None:
    """Return why a task that memory ended is not run again, behind a sentence; None where it is.

    `reached_bytes` are what it reached by its own fault, 0 where it was not its own; `counted`
    says whether memory_requeues_max bounds this end.
    """
    limits, spec = cluster.limits, task.spec
    if task.cancelled:
        return ""
    if reached_bytes and spec.memory_limit_bytes is not None:
        return ""  # the limit is its user's own: it is never raised
    if reached_bytes and spec.memory_exact:
        return ""
    if not spec.requeue:
        return ", and it must not be requeued"
    most = limits.memory_requeues_max if counted else limits.memory_spared_max
    if (task.memory_requeues if counted else task.memory_spared) >= most:
        return f"; it was run again{' with more memory' if reached_bytes else ''} {most} times"
    if not reached_bytes:
        return None
    largest_bytes = cluster.largest_capacity_bytes()
    if reached_bytes >= largest_bytes:
        return f"; the largest node can give {size_words(largest_bytes)}"
    return None


def _cause(task: Task, event: AttemptEnded) -> OomCause:
    """Return the cause; where the agent tells none, a kill can only be the attempt's own limit's,
    and without one that of the node."""
    if event.oom_cause is not OomCause.NONE:
        return event.oom_cause
    unbound = task.memory_elastic and task.memory_limit_bytes is None
    return OomCause.BYSTANDER if unbound else OomCause.OWN_LIMIT


def _memory_reason(task: Task, event: AttemptEnded) -> str:
    numbers = f"peak {size_words(event.memory_peak_bytes)}"
    if task.memory_limit_bytes is not None:
        numbers += f", limit {size_words(task.memory_limit_bytes)}"
    match _cause(task, event):
        case OomCause.CHILD_ONLY:
            return f"a child process outgrew the task's memory limit ({numbers})"
        case OomCause.OWN_LIMIT:
            return f"outgrew its memory limit ({numbers})"
        case OomCause.GUARD:
            why = f": {event.guard_reason}" if event.guard_reason else ""
            return f"was ended by the guard of node {task.node_id} ({numbers}){why}"
        case OomCause.BYSTANDER:
            return f"was killed when node {task.node_id} was out of memory ({numbers})"
        case cause:
            return f"ended for want of memory, cause {cause.value} ({numbers})"


def _signal_name(number: int) -> str:
    try:
        return f"{number} ({signals.Signals(number).name})"
    except ValueError:
        return str(number)


def _fenced(cluster: Cluster, event: AttemptStarted | AttemptFrozen | AttemptEnded) -> Task | None:
    """Return the task if the report is about its present attempt on that node."""
    task = cluster.tasks.get(event.task_id)
    if task is None or task.state not in PLACED_STATES:
        return None
    if task.attempt != event.attempt or task.node_id != event.node_id:
        return None
    return task


def _replaced(cluster: Cluster, event: AttemptStarted | AttemptFrozen | AttemptEnded) -> bool:
    """Say whether the report came on a stream that another one of its node has replaced.

    It must not be acknowledged: sequences count per agent process, and that may be another by
    now. If it is the same one, it repeats the report on its new stream.
    """
    return event.stream is not None and event.stream != cluster.nodes[event.node_id].stream


def _between(task: Task, at_ns: int, now_ns: int) -> int:
    """Return an instant of an agent's clock, which may be wrong, within what can be true."""
    return min(max(at_ns, task.assigned_at_ns), now_ns)


def _attempt(task: Task, outcome: TaskState, reason: str, ended_at_ns: int) -> Attempt:
    return Attempt(
        task_id=task.id,
        number=task.attempt,
        node_id=task.node_id,
        outcome=outcome,
        assigned_at_ns=task.assigned_at_ns,
        started_at_ns=task.started_at_ns,
        ended_at_ns=ended_at_ns,
        exit_code=task.exit_code,
        signal=task.signal,
        memory_peak_bytes=task.memory_peak_bytes,
        memory_limit_bytes=task.memory_limit_bytes,
        oom_cause=task.oom_cause,
        reason=reason,
        category=task.spec.category,
        input_bytes=task.spec.input_bytes,
        declared_bytes=task.spec.memory_request_bytes if task.spec.memory_declared else None,
        memory_size_bytes=task.memory_size_bytes,
    )


def _retry_delay_ns(task: Task, delay_max_ns: int) -> int:
    """Return the wait before the next retry: doubled with each failure, up to a bound."""
    return min(delay_max_ns, task.spec.retry_delay_ns << min(task.failures, 32))


def _acknowledge(cluster: Cluster, node_id: str, sequence: int) -> SendAcknowledgement:
    record = cluster.nodes[node_id]
    record.acknowledged_sequence = max(record.acknowledged_sequence, sequence)
    return SendAcknowledgement(node_id, record.acknowledged_sequence)


def _requeue(cluster: Cluster, task: Task, reason: str, not_before_ns: int = 0) -> Commands:
    cluster.release(task.id)
    task = replace(
        with_state(task, TaskState.PENDING, "REQUEUED", reason),
        not_before_ns=not_before_ns,
        node_id="",
        instance_id="",
        gpu_indexes=(),
        assigned_at_ns=0,
        started_at_ns=0,
        memory_limit_bytes=None,
        memory_size_bytes=0,
        memory_expected_peak_bytes=0,
        memory_elastic=False,
        memory_reason="",
    )
    cluster.put_task(task)
    return [SaveTask(task)]


def end(
    cluster: Cluster, task: Task, state: TaskState, code: str, reason: str, at_ns: int
) -> Commands:
    """End a task for good, and with it the tasks that waited for another end of it."""
    commands: Commands = []
    done: list[int] = []
    ending = deque([(task, state, code, reason)])
    while ending:
        task, state, code, reason = ending.popleft()
        if task.id not in cluster.tasks:
            continue  # two of its dependencies have disappointed it
        cluster.release(task.id)
        task = replace(with_state(task, state, code, reason), ended_at_ns=at_ns)
        cluster.put_task(task)
        commands.append(SaveTask(task))
        done.append(task.id)
        things = [task.id]
        if task.array_id:
            things.append(task.array_id)
            if task.array_id not in cluster.arrays:
                done.append(task.array_id)
        for thing_id in things:
            cluster.ends.note(thing_id, state)
            for waiting_id in cluster.dependencies.disappointed(thing_id, state):
                why = f"task {task.label}, which it waited for, ended {state.value}"
                ending.append(
                    (cluster.tasks[waiting_id], TaskState.CANCELLED, "DEPENDENCY_NEVER_MET", why)
                )
    # Only now: whoever is disappointed waits for nothing any more.
    for thing_id in done:
        cluster.complete(thing_id)
    return commands

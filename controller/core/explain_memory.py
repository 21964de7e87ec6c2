"""Sentences about memory: which numbers led to a size, what a guard did."""

from __future__ import annotations

from mass.units import size_words

from controller.core.cluster import Cluster
from controller.core.limits import MILLISECOND_NS, SECOND_NS
from controller.core.model import GuardStep, GuardStepKind, Task
from controller.core.nodes import NodeRecord
from controller.core.results import Results

STEPS_SHOWN_MAX = 5  # of the guard, about one task


def intake_stopped(cluster: Cluster, results: Results, record: NodeRecord) -> str:
    """Return why a node's guard lets no new task start, with its numbers."""
    steps = cluster.guard_log.of_node(record.node.id)
    stops = [step for step in steps if step.kind is GuardStepKind.STOP_INTAKE]
    if stops:
        return f"its guard wants no new task now: {stops[-1].reason}"
    slot = record.slot
    promises = results.promises
    used, total = int(promises.machine_used[slot]), int(promises.machine_total[slot])
    return f"its guard wants no new task now ({size_words(used)} of {size_words(total)} are used)"


def limit_text(task: Task) -> str:
    """Return what the kernel enforces on the latest attempt."""
    if task.memory_limit_bytes is None:
        return "no limit of its own" if task.memory_elastic else "limit 0 B"
    return f"limit {size_words(task.memory_limit_bytes)}"


def request_text(task: Task) -> str:
    """Return what was declared."""
    spec = task.spec
    return size_words(spec.memory_request_bytes) if spec.memory_declared else "auto"


def size_of_waiting(cluster: Cluster, task: Task, where: str) -> list[str]:
    """Return what a waiting task would get now, and from which numbers; nothing if as declared.

    `where` says which nodes it asks for, "" where all will do.
    """
    need = cluster.need_of(task)
    if need is None:
        return []
    decision = cluster.learning.decide(need)
    return [f"it would get {size_words(decision.size_bytes)} now{where}, {decision.reason}"]


def size_of_placed(task: Task) -> list[str]:
    """Return what the latest attempt got, and from which numbers; nothing if as declared."""
    if not task.memory_reason:
        return []
    line = f"sized {size_words(task.memory_size_bytes)}: {task.memory_reason}"
    # Under elastic limits the reason may be in terms of it already.
    if task.memory_expected_peak_bytes and "expected peak" not in task.memory_reason:
        peak = size_words(task.memory_expected_peak_bytes)
        line += f"; the node's guard expects a peak of {peak}"
    return [line]


def guard_lines(cluster: Cluster, task: Task) -> list[str]:
    """Return what the guard did lately about a task, each with its time of day in UTC."""
    steps = cluster.guard_log.of_task(task.id)
    earlier = len(steps) - STEPS_SHOWN_MAX
    lines = [f"guard: {earlier} earlier steps: mass events --last 0"] if earlier > 0 else []
    for step in steps[-STEPS_SHOWN_MAX:]:
        lines.append(f"{_time_of_day(step.taken_at_ns)}  guard: {step_text(step, task.label)}")
    return lines


def _time_of_day(at_ns: int) -> str:
    """Return an instant's time in UTC to the millisecond, as in a list of events."""
    seconds, rest_ns = divmod(at_ns, SECOND_NS)
    minutes, hours = seconds // 60 % 60, seconds // 3600 % 24
    return f"{hours:02}:{minutes:02}:{seconds % 60:02}.{rest_ns // MILLISECOND_NS:03}Z"


def step_text(step: GuardStep, label: str = "") -> str:
    """Return a step of a guard in a sentence with its numbers; `label` names its task."""
    text = f"{step.kind.value} at {size_words(step.used_bytes)} of {size_words(step.limit_bytes)}"
    if step.growth_bytes_per_second > 0:
        text += f", growing by {size_words(int(step.growth_bytes_per_second))}/s"
    if step.seconds_to_full is not None:
        text += f", full in {step.seconds_to_full:.1f} s"
    if step.task_id:
        used = size_words(step.task_used_bytes)
        text += f"; task {label or step.task_id} attempt {step.attempt} uses {used}"
    return f"{text} ({step.reason})" if step.reason else text

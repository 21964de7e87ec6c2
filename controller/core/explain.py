"""Why a task is where it is, in sentences with the numbers that were used."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from mass.units import duration_text, size_words, told_apart

from controller.core.cluster import Cluster
from controller.core.explain_memory import (
    guard_lines,
    intake_stopped,
    limit_text,
    request_text,
    size_of_placed,
    size_of_waiting,
)
from controller.core.limits import SECOND_NS
from controller.core.model import (
    NodeState,
    Preference,
    Scheduling,
    Task,
    TaskSpec,
    TaskState,
)
from controller.core.nodes import NodeRecord
from controller.core.placement import Chooser, Refusal, able_when_empty, explain_shape
from controller.core.queue import Shape
from controller.core.results import Results

REFUSALS_SHOWN_MAX = 100
# What its user does so that a task goes on that waits for nothing else.
LET_GO = {
    TaskState.HELD: ("release", "be placed"),
    TaskState.PAUSED: ("resume", "go on"),
}


@dataclass(frozen=True, slots=True)
class NodeRefusal:
    """Why one node cannot take a task now; all in bytes."""

    node_id: str
    code: str
    reason: str
    requested_bytes: int
    promise_bytes: int
    foreign_used_bytes: int
    reserved_bytes: int


def pending_reason(cluster: Cluster, results: Results | None, task: Task) -> tuple[str, str]:
    """Return the code and the sentence for why a task waits, as of the last cycle."""
    if task.state is not TaskState.PENDING or results is None:
        return task.reason_code, task.reason
    if task.id in cluster.dependencies:
        return "DEPENDENCY", _waits_for(cluster, task)
    if task.id in cluster.delayed:
        left_s = max(0.0, (task.not_before_ns - results.now_ns) / 1e9)
        return "RETRY_DELAY", f"{task.reason}; it waits {left_s:.0f} s before that"
    refusal = cluster.refusals.of_line(cluster.queue.line(task))
    if refusal is None:
        return "WAITING", "waits for the next cycle"
    return refusal.code, _sentence(cluster, results, task, refusal)


def _waits_for(cluster: Cluster, task: Task) -> str:
    unmet = cluster.unmet(task)
    shown = ", ".join(f"{_label(cluster, i.task_id)} ({i.kind.value})" for i in unmet[:10])
    more = f" and {len(unmet) - 10} more" if len(unmet) > 10 else ""
    return f"waits for {shown}{more}"


def _label(cluster: Cluster, thing_id: int) -> str:
    task = cluster.tasks.get(thing_id)
    return str(thing_id) if task is None else task.label


def _sentence(cluster: Cluster, results: Results, task: Task, refusal: Refusal) -> str:
    shape = cluster.queue.shape_of(task)
    where = _where(results, shape)
    asks = f"asks {size_words(shape.memory_request_bytes)}{where}"
    cpus, gpus = f"asks {_cpus(task.spec.cpus)}", f"asks {_gpus(task.spec.gpus)}"
    slot = refusal.best_slot
    if refusal.code == "RUNNING_LIMIT":
        return f"{cluster.limits.tasks_running_max} tasks are running, which is the bound"
    if refusal.code == "ARRAY_LIMIT":
        bound = task.spec.array_running_max
        return f"{bound} elements of array {task.array_id} are placed, which is its bound"
    if refusal.code == "PILOT":
        placed = cluster.category_tasks.get(task.spec.category, 0)
        return (
            f"nothing is known of category {task.spec.category}: it waits for what the"
            f" {_tasks(placed)} of it placed before {'tells' if placed == 1 else 'tell'}"
        )
    if refusal.code == "USER_LIMIT":
        bound = cluster.limits.user_tasks_max
        return f"{bound} tasks of user {task.user} are placed, which is the bound for one user"
    if refusal.code == "NO_NODE_READY" or slot is None:
        return f"no node is ready ({len(cluster.nodes)} known)"
    if refusal.code == "NO_NODE_LARGE_ENOUGH":
        whole, largest = told_apart(shape.capacity_bytes, _largest(results))
        told = f"asks {whole}, the largest ready node can give {largest} when empty"
        return told + _if_open(cluster, results, shape)
    best = cluster.table.ids[slot]
    asked, promise = told_apart(shape.memory_request_bytes, refusal.best_promise_bytes)
    sentences = {
        "NO_NODE_MATCHES": f"no ready node fulfils its constraint: {task.spec.constraint}",
        "NO_NODE_WITH_THAT_MANY_GPUS": f"{gpus}, no ready node that fulfils its constraint has"
        " that many",
        "NO_NODE_WITH_GPUS": f"{gpus}, fewer are free on each node with the memory and CPUs for it",
        "NO_NODE_WITH_THAT_MANY_CPUS": f"{cpus}, no ready node with the memory for it has that"
        " many",
        "BLOCKED_BY_RULE": f"a rule with placement: block holds on every node that could take it"
        f" ({asks})",
        "INTAKE_STOPPED": f"the guard of every node that could take it wants no new task now"
        f" ({asks})",
        "NO_NODE_WITH_MEMORY": f"asks {asked}{where}, the largest promise is {promise} on node"
        f" {best} ({terms(cluster, results, slot)})",
        "NO_NODE_WITH_CPUS": f"{cpus}, at most"
        f" {_cpus_free(results, shape):g} free on a node with the memory for it",
        "NODE_KEPT_FOR_ANOTHER": f"{asks}, the node that could take it is kept free for a task"
        " that waits longer",
        "POOL_EXHAUSTED": "the controller's memory pool is full, no reservation can be made",
    }
    return sentences[refusal.code]


def _where(results: Results, shape: Shape) -> str:
    """Return which nodes a shape asks for, behind its size; "" where all will do."""
    least_bytes = shape.node_min_bytes
    if least_bytes and (results.offers.capacity[results.offers.open] < least_bytes).any():
        return f" on a node that can give the {size_words(least_bytes)} it declares"
    return ""


def _if_open(cluster: Cluster, results: Results, shape: Shape) -> str:
    """Return which node would take a shape if it were open, behind a sentence; "" if none."""
    closed = replace(results.offers, open=~results.offers.open)
    slots = np.flatnonzero(able_when_empty(closed, shape))
    node_ids = [name for slot in slots if (name := cluster.table.ids[slot]) is not None]
    if not node_ids:
        return ""
    node_id = min(node_ids)
    why = _why_closed(results, cluster.nodes[node_id])[1]
    return f"; node {node_id} could take it, were it open ({why})"


def _cpus(count: float) -> str:
    return f"{count:g} CPU" if count == 1 else f"{count:g} CPUs"


def _gpus(count: int) -> str:
    return f"{count} GPU" if count == 1 else f"{count} GPUs"


def _tasks(count: int) -> str:
    return f"{count} task" if count == 1 else f"{count} tasks"


def _cpus_free(results: Results, shape: Shape) -> float:
    offers = results.offers
    fits = offers.open & ~offers.blocked & (offers.promise >= shape.memory_request_bytes)
    fits &= offers.capacity >= shape.node_min_bytes
    return float(offers.cpus_free[fits].max(initial=0))


def _largest(results: Results) -> int:
    offers = results.offers
    return int(offers.capacity[offers.open].max(initial=0))


def terms(cluster: Cluster, results: Results, slot: int) -> str:
    """Return the sum that binds a node's promise, term by term."""
    promises, offers, table = results.promises, results.offers, cluster.table
    who = "tasks"
    if offers.own[slot] <= offers.machine[slot]:
        charged = int(offers.capacity[slot] - offers.own[slot])
        who += " and reservations" if table.reservations[slot] else ""
        return (
            f"own share: capacity {size_words(int(offers.capacity[slot]))} - {who}"
            f" {size_words(charged)}; foreign_used {size_words(int(promises.foreign[slot]))}"
        )
    charged = int(promises.machine_charged[slot] + promises.machine[slot] - offers.machine[slot])
    on_machine = table.machine == table.machine[slot]
    who += " and reservations" if table.reservations[on_machine].any() else ""
    return (
        f"machine: total {size_words(int(promises.machine_total[slot]))} - system reserve"
        f" {size_words(int(promises.system_reserve[slot]))} - foreign_used"
        f" {size_words(int(promises.foreign[slot]))} - {who} {size_words(charged)}"
    )


def node_refusals(cluster: Cluster, results: Results | None, task: Task) -> list[NodeRefusal]:
    """Return for each node why it cannot take a waiting task now; at most 100 nodes."""
    if task.state is not TaskState.PENDING or results is None:
        return []
    refusals, shape = [], cluster.queue.shape_of(task)
    for node_id in sorted(cluster.nodes)[:REFUSALS_SHOWN_MAX]:
        record = cluster.nodes[node_id]
        slot = record.slot
        if slot >= results.count:
            continue
        code, reason = _refusal_of(cluster, results, task, shape, record)
        too_small = code == "TOO_SMALL"
        refusals.append(
            NodeRefusal(
                node_id=node_id,
                code=code,
                reason=reason,
                requested_bytes=shape.capacity_bytes if too_small else shape.memory_request_bytes,
                promise_bytes=promise_bytes(results, record),
                foreign_used_bytes=int(results.promises.foreign[slot]),
                reserved_bytes=int(cluster.ledger.reserved_bytes[slot]),
            )
        )
    return refusals


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a task would go now, or why it would wait."""

    node_id: str
    code: str
    reason: str
    refusals: list[NodeRefusal]  # of the other nodes


def plan(cluster: Cluster, results: Results | None, spec: TaskSpec) -> Plan:
    """Return where a task would be placed by what the last cycle left; nothing is queued."""
    task = Task(0, spec, "", TaskState.PENDING, submitted_at_ns=0)
    if results is None:
        return Plan("", "WAITING", "no cycle has run yet", [])
    shape, kept = cluster.queue.shape_of(task), np.zeros(results.count, dtype=np.bool_)
    kept[[slot for slot in cluster.kept_slots.values() if slot < results.count]] = True
    slot = Chooser(results.offers, kept).choose(shape)
    refusals = node_refusals(cluster, results, task)
    if slot is None:
        refusal = explain_shape(results.offers, shape, kept)
        return Plan("", refusal.code, _sentence(cluster, results, task, refusal), refusals)
    node_id = str(cluster.table.ids[slot])
    others = [
        replace(refusal, code="LESS_SUITED", reason=_less_suited(results, slot, spec))
        if refusal.code == "NONE"
        else refusal
        for refusal in refusals
        if refusal.node_id != node_id
    ]
    promise = f"it can promise {size_words(int(results.offers.promise[slot]))}"
    size = size_of_waiting(cluster, task, _where(results, shape)) or [
        f"it would get {size_words(shape.memory_request_bytes)}, as declared"
    ]
    reason = "; ".join([f"{promise} ({terms(cluster, results, slot)})", *size])
    return Plan(node_id, "", reason, others)


def _less_suited(results: Results, slot: int, spec: TaskSpec) -> str:
    which = "least that is enough" if spec.preference is Preference.PACK else "most"
    promise = size_words(int(results.offers.promise[slot]))
    return f"could take it; the node with the {which} memory left is taken ({promise})"


def _refusal_of(
    cluster: Cluster, results: Results, task: Task, shape: Shape, record: NodeRecord
) -> tuple[str, str]:
    offers, slot, spec = results.offers, record.slot, task.spec
    asks_bytes = shape.memory_request_bytes
    code, why = _why_closed(results, record)
    if code:
        return code, why
    if spec.constraint and not offers.matching(spec.constraint)[slot]:
        return "CONSTRAINT", f"it does not fulfil {spec.constraint}"
    if offers.capacity[slot] < shape.capacity_bytes:
        whole, capacity = told_apart(shape.capacity_bytes, int(offers.capacity[slot]))
        return "TOO_SMALL", f"asks {whole}, the node can give {capacity} when empty"
    if offers.blocked[slot]:
        names = [result.rule.name for result in results.rules if result.blocks(slot)]
        return "BLOCKED_BY_RULE", f"rule {', '.join(names)} holds on it"
    if cluster.table.intake_stopped[slot]:
        return "INTAKE_STOPPED", intake_stopped(cluster, results, record)
    if offers.promise[slot] < asks_bytes:
        asks, promise = told_apart(asks_bytes, int(offers.promise[slot]))
        return "MEMORY", f"asks {asks}, it can promise {promise} ({terms(cluster, results, slot)})"
    if offers.cpus_free[slot] < spec.cpus:
        return "CPUS", f"asks {_cpus(spec.cpus)}, {offers.cpus_free[slot]:g} free"
    if spec.gpus and offers.gpus_free[slot] < spec.gpus:
        return "GPUS", f"asks {_gpus(spec.gpus)}, {offers.gpus_free[slot]} free"
    if slot in cluster.kept_slots.values() and slot != cluster.kept_slots.get(task.id):
        return "KEPT", "kept free for a task that waits longer"
    return "NONE", "could take it in the next cycle"


def _why_closed(results: Results, record: NodeRecord) -> tuple[str, str]:
    """Return why a node takes no tasks at all, as code and sentence; "" where it does."""
    node = record.node
    if node.scheduling is not Scheduling.ENABLED:
        why = f": {node.scheduling_reason}" if node.scheduling_reason else ""
        return node.scheduling.value, f"{node.scheduling.value.lower()}{why}"
    not_ready = _not_ready(results, record)
    return ("NOT_READY", not_ready) if not_ready else ("", "")


def promise_bytes(results: Results, record: NodeRecord) -> int:
    """Return what a node can promise after the assignments of the cycle; 0 if it is not there."""
    return int(results.offers.promise[record.slot]) if record.is_heard else 0


def state_reason(record: NodeRecord, now_ns: int) -> str:
    """Return why a node is in its state, where more is known than its silence."""
    if record.has_left:
        return "its agent has left"
    if record.stream is None:
        heard = _seconds(now_ns - record.last_seen_ns)
        return f"its agent is not connected, last heard {heard} ago"
    return ""


def _seconds(time_ns: int) -> str:
    return duration_text(max(0, time_ns) // SECOND_NS * SECOND_NS)


def _node_silent(cluster: Cluster, task: Task, now_ns: int) -> list[str]:
    """Return what follows for a placed task where its node is not heard of."""
    record = cluster.nodes[task.node_id]
    if record.is_heard:
        return []
    silent_ns = now_ns - record.last_seen_ns
    what = "silent" if record.stream is not None else "not connected"
    return [
        f"node {task.node_id} is {what} ({record.state.value}), last heard {_seconds(silent_ns)}"
        f" ago; unless it comes back the attempt is given up in"
        f" {_seconds(cluster.limits.lost_after_ns - silent_ns)}"
    ]


def _not_ready(results: Results, record: NodeRecord) -> str:
    """Return why a node that is enabled takes no tasks, "" where it does."""
    if record.stream is None:
        why = "its agent has left" if record.has_left else "the node is not connected"
        return f"{why} ({record.state.value})"
    if record.state is not NodeState.READY:
        return f"the node is {record.state.value}"
    if record.leaving_until_ns:
        return "its agent is ending its attempts"
    if not results.promises.known[record.slot]:
        return "no sample of its memory has come lately"
    return ""


def sentences(cluster: Cluster, results: Results | None, task: Task, now_ns: int) -> list[str]:
    """Return why a task is in its state, the most important first."""
    code, reason = pending_reason(cluster, results, task)
    lines = [f"task {task.label} is {task.state.value}" + (f": {reason}" if reason else "")]
    if task.state in LET_GO:
        command, then = LET_GO[task.state]
        lines.append(f"'mass task {command} {task.label}' lets it {then}")
    if task.state is TaskState.PENDING:
        waiting = len(cluster.queue) + len(cluster.delayed) + len(cluster.dependencies)
        others = "1 task is" if waiting == 1 else f"{waiting} tasks are"
        lines.append(f"reason code {code}; {others} waiting")
        if task.reason_code == "REQUEUED":
            lines.append(f"it was queued again: {task.reason}")
        where = _where(results, cluster.queue.shape_of(task)) if results is not None else ""
        lines += size_of_waiting(cluster, task, where)
        if task.id in cluster.kept_slots:
            node_id = cluster.table.ids[cluster.kept_slots[task.id]]
            lines.append(f"node {node_id} is kept free for it, because others overtook it")
    if task.id in cluster.ahead:
        lines.append(_held_on_its_node(cluster, task))
    handle = cluster.reservations.get(task.id)
    if handle is not None:
        lines += _node_silent(cluster, task, now_ns)
        entry = cluster.ledger.read(handle)
        lines.append(
            f"attempt {task.attempt} on node {task.node_id}: reserved"
            f" {size_words(entry.reserved_bytes)}, used now {size_words(entry.used_bytes)},"
            f" {limit_text(task)}"
        )
        lines += size_of_placed(task)
    if task.ended and task.attempt:
        lines.append(
            f"attempt {task.attempt} ran on node {task.node_id}: peak"
            f" {size_words(task.memory_peak_bytes)}, request"
            f" {request_text(task)}, {limit_text(task)}"
        )
        lines += size_of_placed(task)
    return lines + guard_lines(cluster, task)


def _held_on_its_node(cluster: Cluster, task: Task) -> str:
    record = cluster.nodes[task.node_id]
    held = len(record.task_ids & cluster.ahead)
    return (
        f"reason code {task.reason_code}; node {task.node_id} has given its"
        f" {_cpus(record.node.cpus)} to {_tasks(len(record.task_ids) - held)},"
        f" {_tasks(held)} sent ahead {'waits' if held == 1 else 'wait'} there"
    )

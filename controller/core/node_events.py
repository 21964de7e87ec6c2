"""What happens to nodes: they join, fall silent, come back, are lost, are cordoned."""

from __future__ import annotations

from dataclasses import replace

from controller.core.cluster import Cluster
from controller.core.commands import (
    Command,
    Reply,
    SaveNode,
    SendAssignment,
    SendFreeze,
    SendSampling,
    SendStop,
    SendWelcome,
)
from controller.core.errors import NodeUnavailable, NotFound, ProtocolMismatch
from controller.core.events import (
    NodeCordoned,
    NodeJoined,
    NodeLeft,
    NodeUncordoned,
    Reconfigured,
)
from controller.core.model import (
    KnownAttempt,
    Node,
    NodeState,
    Scheduling,
    Task,
    TaskState,
)
from controller.core.nodes import NodeRecord
from controller.core.task_events import lose

Commands = list[Command]


def on_node_joined(cluster: Cluster, event: NodeJoined) -> Commands:
    """Welcome an agent and bring what it has and what we believe it has together.

    Raises:
        LimitReached, PoolIsExhausted: there is no place for one more node.
        ProtocolMismatch: another machine already serves under this name.
        NodeUnavailable: attempts may still run on the machine that served under this name.
    """
    record = cluster.nodes.get(event.node_id)
    if record is None:
        record = cluster.add_node(_node(event, None), event.at_ns, event.stream)
        same_instance = False
    else:
        _refuse_impostor(cluster, record, event)
        same_instance = record.node.instance_id == event.instance_id
        record.node = _node(event, record.node)
    if not same_instance:
        record.acknowledged_sequence = 0
    record.stream = event.stream
    record.capabilities = event.capabilities
    cluster.table.holds_ahead[record.slot] = event.holds_ahead
    record.sampled = False
    record.leaving_until_ns = 0
    record.has_left = False
    cluster.table.intake_stopped[record.slot] = False
    cluster.leaving.discard(event.node_id)
    record.last_seen_ns = event.at_ns
    record.state = NodeState.JOINING
    cluster.set_node(record)
    commands: Commands = [SaveNode(record.node)]
    return commands + _reconcile(cluster, record, event)


def _refuse_impostor(cluster: Cluster, record: NodeRecord, event: NodeJoined) -> None:
    """Refuse a name that another agent uses, or that was another machine's at the last word."""
    silent_ns = event.at_ns - record.last_seen_ns
    fresh = record.stream is not None and silent_ns < cluster.limits.node_unreachable_ns
    if record.node.machine_id == event.machine_id:
        if fresh and record.node.instance_id != event.instance_id:
            # Each of the two would make the other's running attempts lost. The stream of an agent
            # that has died ends at once; what is left of one that hangs ends with its silence.
            raise NodeUnavailable(
                f"node '{event.node_id}' is connected from another agent on this machine; end that"
                " one, or give this agent another --name",
                node=event.node_id,
            )
        return
    if fresh:
        raise ProtocolMismatch(
            f"node '{event.node_id}' is connected from another machine; give this agent another"
            " --name"
        )
    if record.task_ids:
        # On the same machine a new agent ends what the old one left; here nobody can, and the
        # attempts may not be given up before their lease has ended them.
        left_s = (cluster.limits.lost_after_ns - silent_ns) / 1e9
        raise NodeUnavailable(
            f"node '{event.node_id}' was another machine, where {len(record.task_ids)} attempts"
            f" may still run for {max(left_s, 0):.0f} s; try again then, or give this agent"
            " another --name",
            node=event.node_id,
        )


def _node(event: NodeJoined, before: Node | None) -> Node:
    node = Node(
        id=event.node_id,
        machine_id=event.machine_id,
        boot_id=event.boot_id,
        instance_id=event.instance_id,
        agent_version=event.agent_version,
        memory_total_bytes=event.memory_total_bytes,
        memory_declared_bytes=event.memory_declared_bytes,
        cpus=event.cpus,
        enforcement=event.enforcement,
        joined_at_ns=event.at_ns,
        labels=dict(event.labels),
        gpus=event.gpus,
    )
    if before is None:
        return node
    return replace(
        node,
        joined_at_ns=before.joined_at_ns,
        scheduling=before.scheduling,
        scheduling_reason=before.scheduling_reason,
        scheduling_by=before.scheduling_by,
        scheduling_since_ns=before.scheduling_since_ns,
        drain_deadline_ns=before.drain_deadline_ns,
    )


def _reconcile(cluster: Cluster, record: NodeRecord, event: NodeJoined) -> Commands:
    """Compare the agent's attempts with ours: resend, stop, forget; what is missing is settled
    when a sample has come."""
    # What an agent still has of another cluster it ends by itself: the numbers mean other tasks.
    ours = event.cluster_id in ("", cluster.cluster_id)
    attempts = event.attempts if ours else ()
    known = {(attempt.task_id, attempt.attempt): attempt for attempt in attempts}
    after: Commands = []
    missing: list[tuple[int, int]] = []
    for task_id in sorted(record.task_ids):
        task = cluster.tasks[task_id]
        attempt = known.pop((task.id, task.attempt), None)
        if attempt is not None:
            after += _still_there(cluster, task, attempt)
        elif _never_arrived(task, event.instance_id):
            # It was saved but not sent, or the stream broke under it; nothing ran.
            after.append(SendAssignment(event.node_id, task))
        else:
            missing.append((task.id, task.attempt))
    record.missing = tuple(missing)
    if missing:
        cluster.unsettled.add(event.node_id)
    else:
        cluster.unsettled.discard(event.node_id)
    # What is left over is nobody's any more; ends that are still to be reported are let through.
    forget = tuple(attempt for attempt in known.values() if not attempt.ended)
    capacity_bytes = int(cluster.ledger.capacity_bytes[record.slot])
    welcome = SendWelcome(
        event.node_id, record.acknowledged_sequence, forget, event.stream, capacity_bytes
    )
    return [welcome, *after]


def call_back_held(cluster: Cluster, now_ns: int) -> Commands:
    """Call back what was sent ahead and has waited too long: what runs there was not brief."""
    commands: Commands = []
    for task_id in sorted(cluster.ahead):
        task = cluster.tasks[task_id]
        if now_ns - task.assigned_at_ns < cluster.limits.ahead_held_max_ns:
            continue
        cluster.note_not_brief(task.node_id)
        slot = cluster.nodes[task.node_id].slot
        cluster.table.ahead_from_ns[slot] = now_ns + cluster.limits.ahead_pause_ns
        commands.append(SendStop(task.node_id, task.id, task.attempt, 0, only_held=True))
    return commands


def settle(cluster: Cluster, now_ns: int) -> Commands:
    """Give up the attempts that an agent does not have any more.

    A sample must have come on the stream of that hello: it is sent behind the welcome. Before, the
    hello may be one that the network kept while its stream died, and the agent, or a later one of
    its node, has been given the attempts since then and runs them.
    """
    commands: Commands = []
    for node_id in sorted(cluster.unsettled):
        record = cluster.nodes[node_id]
        if not record.sampled:
            continue
        cluster.unsettled.remove(node_id)
        missing, record.missing = record.missing, ()
        reason = f"the agent of node {node_id} no longer has it"
        for task_id, number in missing:
            task = cluster.tasks.get(task_id)
            if task is not None and task_id in record.task_ids and task.attempt == number:
                commands += lose(cluster, task, "AGENT_RESTARTED", reason, now_ns)
    return commands


def _still_there(cluster: Cluster, task: Task, attempt: KnownAttempt) -> Commands:
    if task.state is TaskState.STOPPING and not attempt.ended:
        grace_ns = cluster.limits.cancel_grace_ns
        return [SendStop(task.node_id, task.id, task.attempt, grace_ns)]
    # What was said last may have been lost with the stream.
    if task.state is TaskState.PAUSED and not attempt.ended:
        return [SendFreeze(task.node_id, task.id, task.attempt, True)]
    if task.reason_code == "RESUMED" and not attempt.ended:
        return [SendFreeze(task.node_id, task.id, task.attempt, False)]
    return []


def _never_arrived(task: Task, instance_id: str) -> bool:
    return task.state is TaskState.ASSIGNED and task.instance_id == instance_id


def on_node_left(cluster: Cluster, event: NodeLeft) -> Commands:
    """Note that a stream has ended; silence decides the rest, unless the agent said goodbye: then
    the node is DOWN at once."""
    record = cluster.nodes.get(event.node_id)
    if record is None or record.stream != event.stream:
        return []
    record.stream = None
    if event.goodbye:  # nobody is to be waited for
        record.has_left, record.state = True, NodeState.DOWN
    cluster.table.refresh_open(record)
    commands: Commands = []
    if event.goodbye:
        # Nothing of these runs: the agent ended them, or they were sent to it after its last word.
        reason = f"the agent of node {event.node_id} has left"
        for task_id in sorted(record.task_ids):
            commands += lose(cluster, cluster.tasks[task_id], "AGENT_LEFT", reason, event.at_ns)
    return commands


def on_node_cordoned(cluster: Cluster, event: NodeCordoned) -> Commands:
    """Keep new tasks off a node.

    Raises:
        NotFound: there is no such node.
    """
    return _set_scheduling(
        cluster, event.node_id, Scheduling.CORDONED, event.reason, event.user, event.at_ns
    )


def on_node_uncordoned(cluster: Cluster, event: NodeUncordoned) -> Commands:
    """Let new tasks onto a node again.

    Raises:
        NotFound: there is no such node.
    """
    return _set_scheduling(cluster, event.node_id, Scheduling.ENABLED, "", event.user, event.at_ns)


def _set_scheduling(
    cluster: Cluster, node_id: str, scheduling: Scheduling, reason: str, user: str, at_ns: int
) -> Commands:
    record = cluster.nodes.get(node_id)
    if record is None:
        raise NotFound(f"no node is called '{node_id}'", node=node_id)
    record.node = replace(
        record.node,
        scheduling=scheduling,
        scheduling_reason=reason,
        scheduling_by=user,
        scheduling_since_ns=at_ns,
        drain_deadline_ns=0,
    )
    cluster.draining.discard(node_id)
    cluster.table.refresh_open(record)
    return [SaveNode(record.node), Reply(record.node)]


def on_reconfigured(cluster: Cluster, event: Reconfigured) -> Commands:
    """Go on with other rules and limits; connected agents are told another sampling interval.

    Raises:
        InvalidRequest: it needs a restart; nothing has changed.
    """
    before_ns = cluster.limits.sample_interval_ns
    cluster.reconfigure(event.rules, event.limits, event.at_ns)
    if event.limits.sample_interval_ns == before_ns:
        return []
    connected = sorted(node_id for node_id, r in cluster.nodes.items() if r.stream is not None)
    return [SendSampling(node_id) for node_id in connected]


def watch_silence(cluster: Cluster, now_ns: int) -> Commands:
    """Move silent nodes to the state their silence asks for, and give up attempts past their lease.

    A node that is heard of again is brought back by `Cluster.touch`.
    """
    limits = cluster.limits
    commands: Commands = []
    for slot in cluster.table.silent_slots(now_ns - limits.node_unreachable_ns):
        node_id = cluster.table.ids[slot]
        assert node_id is not None
        record = cluster.nodes[node_id]
        silent_ns = now_ns - record.last_seen_ns
        down = record.has_left or silent_ns >= limits.node_down_ns
        record.state = NodeState.DOWN if down else NodeState.UNREACHABLE
        cluster.table.refresh_open(record)
        if silent_ns >= limits.lost_after_ns:
            reason = f"node {node_id} has been silent for {silent_ns // 1_000_000_000} s"
            for task_id in sorted(record.task_ids):
                task = cluster.tasks[task_id]
                if record.stream is not None:  # mute but there: it must not go on with it
                    commands.append(SendStop(node_id, task.id, task.attempt, 0))
                commands += lose(cluster, task, "NODE_LOST", reason, now_ns)
    return commands

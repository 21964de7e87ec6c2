"""The heart of MASS: events in, commands out, and the cycle.

    metrics = collect_metrics()         what every node measured, one frozen view
    results = evaluate_rules(metrics)   what it can promise, its pressure, the rules that hold
    assign_tasks(results)               waiting tasks to nodes, on a working copy
    trigger_alerts(results)             alerts move on in their lives
    allocate_memory(metrics)            assignments are reserved in the ledger, or withdrawn
    display_results(results)            what the shells show until the next cycle

The same events at the same times give the same commands. Nothing here reads a clock, touches the
world, or performs a command: the engine saves what is to be saved, and only then replies, sends
and notifies.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from allocator.ledger import NoRoom
from controller.core import (
    control_events,
    drain_events,
    guard_events,
    node_events,
    reservation_events,
    submit_events,
    task_events,
)
from controller.core.backfill import Room, free_at_ns
from controller.core.cluster import Cluster, with_state
from controller.core.commands import Command, Notify, SaveAlert, SaveTask, SendAssignment
from controller.core.errors import LimitReached, PoolIsExhausted
from controller.core.events import (
    AttemptEnded,
    AttemptFrozen,
    AttemptStarted,
    Event,
    GuardActed,
    NodeCordoned,
    NodeDrained,
    NodeForgotten,
    NodeJoined,
    NodeLeft,
    NodeUncordoned,
    Reconfigured,
    ReservationAsked,
    ReservationReleased,
    ReservationRenewed,
    TasksCancelled,
    TasksControlled,
    TasksSubmitted,
    Tick,
)
from controller.core.metrics import Scope
from controller.core.model import AHEAD, MemoryLimits, TaskState
from controller.core.placement import (
    Placement,
    Quotas,
    Refusal,
    able_when_empty,
    largest_sizes_bytes,
    node_to_keep,
    place,
)
from controller.core.promise import compute
from controller.core.renewed import replace
from controller.core.reserved import follow_use
from controller.core.results import LIVE_METRICS, Metrics, Results, make_offers, read_metrics
from controller.core.rules import RuleSet, blocked, evaluate

# Each handler takes the event of its key; which type that is, a dictionary cannot say.
HANDLERS: dict[type[Event], Callable[[Cluster, Any], list[Command]]] = {
    TasksSubmitted: submit_events.on_tasks_submitted,
    TasksCancelled: task_events.on_tasks_cancelled,
    TasksControlled: control_events.on_tasks_controlled,
    AttemptStarted: task_events.on_attempt_started,
    AttemptFrozen: task_events.on_attempt_frozen,
    AttemptEnded: task_events.on_attempt_ended,
    GuardActed: guard_events.on_guard_acted,
    NodeJoined: node_events.on_node_joined,
    NodeLeft: node_events.on_node_left,
    NodeCordoned: node_events.on_node_cordoned,
    NodeUncordoned: node_events.on_node_uncordoned,
    NodeDrained: drain_events.on_node_drained,
    NodeForgotten: drain_events.on_node_forgotten,
    ReservationAsked: reservation_events.on_reservation_asked,
    ReservationRenewed: reservation_events.on_reservation_renewed,
    ReservationReleased: reservation_events.on_reservation_released,
    Reconfigured: node_events.on_reconfigured,
}
AHEAD_REASON = (AHEAD, "waits on its node until CPUs are free: it was sent ahead of time")
# Events after which no task can be placed that could not be before.
QUIET = (AttemptStarted, AttemptFrozen, GuardActed, ReservationRenewed)


class Scheduler:
    """The only code that changes the cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.cycle_wanted = True  # something happened that may let a task be placed
        self.displayed: Results | None = None
        self._now_ns = 0
        self._commands: list[Command] = []
        self._planned: list[Placement] = []
        self._rules_seen: tuple[RuleSet, int] | None = None  # what the rule results are of
        self._rules_evaluated_at_ns = 0

    def handle(self, event: Event) -> tuple[Command, ...]:
        """Take in one event. A refused one changes nothing.

        Raises:
            MassError: a user or an agent asked for what cannot be; the class says why.
        """
        if isinstance(event, Tick):
            commands = self._pass_time(event.at_ns)
            if not commands:  # time alone waits for the interval
                return ()
        else:
            commands = HANDLERS[type(event)](self.cluster, event)
        if not isinstance(event, QUIET):
            self.cycle_wanted = True
        return tuple(commands)

    def _pass_time(self, now_ns: int) -> list[Command]:
        """Look at everything that time alone changes."""
        cluster = self.cluster
        commands = node_events.watch_silence(cluster, now_ns)
        commands += drain_events.advance_drains(cluster, now_ns)
        commands += node_events.call_back_held(cluster, now_ns)
        commands += reservation_events.expire_reservations(cluster, now_ns)
        cluster.recover_room()
        woken = cluster.wake(now_ns)
        if cluster.reopen_left(now_ns) or woken:
            self.cycle_wanted = True
        return commands

    def run_cycle(self, now_ns: int) -> tuple[Command, ...]:
        """Go once through the cycle and return what is to be saved, sent and told."""
        self._now_ns = now_ns
        self._commands = node_events.settle(self.cluster, now_ns)
        self._commands += drain_events.advance_drains(self.cluster, now_ns)
        self.cluster.wake(now_ns)
        follow_use(self.cluster, now_ns)
        self._planned = []
        self.cycle_wanted = False
        metrics = self.collect_metrics()
        results = self.evaluate_rules(metrics)
        self.assign_tasks(results)
        self.trigger_alerts(results)
        self.allocate_memory(metrics)
        self.display_results(results)
        return tuple(self._commands)

    def collect_metrics(self) -> Metrics:
        """Return what every node measured, as one view that no later sample changes."""
        return read_metrics(self.cluster, self._now_ns)

    def evaluate_rules(self, metrics: Metrics) -> Results:
        """Return per node the two sums of its promise, its pressure and the rules that hold."""
        cluster = self.cluster
        promises = compute(metrics.memory, cluster.limits)
        count, memory = metrics.count, metrics.memory
        if self.displayed is not None and self._rules_still_answer(metrics.now_ns):
            rules = self.displayed.rules
        else:
            rules = evaluate(
                cluster.rules,
                metrics.column,
                count,
                memory.used_slot,
                metrics.cluster_column,
                metrics.task_column,
            )
            self._rules_seen = (cluster.rules, cluster.history.version)
            self._rules_evaluated_at_ns = metrics.now_ns
        offers = make_offers(cluster, promises, blocked(rules, count), memory.capacity)
        return Results(metrics.now_ns, count, promises, rules, offers)

    def _rules_still_answer(self, now_ns: int) -> bool:
        """Say whether the last results are good for this cycle too: it was an event that asked for
        it, no sample has come since, and no rule is about what events change."""
        rules = self.cluster.rules
        return (
            self._rules_seen == (rules, self.cluster.history.version)
            and now_ns - self._rules_evaluated_at_ns < self.cluster.limits.sample_interval_ns
            and rules.scopes <= {Scope.NODE}
            and not rules.metrics & LIVE_METRICS
        )

    def assign_tasks(self, results: Results) -> None:
        """Plan which waiting task goes where; nothing is reserved yet."""
        cluster = self.cluster
        cluster.learning.offer(results.now_ns, *largest_sizes_bytes(results.offers))
        elastic = cluster.limits.memory_limits is MemoryLimits.ELASTIC
        room = cluster.limits.tasks_running_max - len(cluster.reservations)
        cluster.accounts.advance(results.now_ns, cluster.limits.fair_share_half_life_ns)
        quotas = Quotas(
            user_tasks=cluster.accounts.task_counts(),
            array_tasks=cluster.arrays.placed(),
            user_tasks_max=cluster.limits.user_tasks_max,
            shares=cluster.accounts.shares() if cluster.limits.fair_share else None,
            category_tasks=dict(cluster.category_tasks),
            is_guess=cluster.learning.is_guess,
            pilots_max=cluster.limits.pilots_elastic_max if elastic else cluster.limits.pilots_max,
            silent=lambda: cluster.silent_tasks(results.now_ns),
            is_brief=lambda task_id: cluster.learning.is_brief(cluster.tasks[task_id].spec),
            held=len(cluster.ahead),
        )
        results.offers.ahead = cluster.table.ahead_cpus(
            results.now_ns, cluster.limits.ahead_per_cpu
        )
        self._give_up_kept_nodes(results)
        results.offers.spare_ns = self._spare_ns(results)
        placements = place(cluster.queue, results.offers, cluster.kept_slots, room, quotas)
        cluster.refusals = placements.refused
        self._planned = placements.placed
        for task_id in sorted(placements.overtaken):
            cluster.overtaken_since_ns.setdefault(task_id, results.now_ns)
        self._keep_nodes(results)

    def _spare_ns(self, results: Results) -> dict[int, int]:
        """Return for each kept slot how long a task may run there and delay nobody."""
        cluster, offers = self.cluster, results.offers
        grace_ns = cluster.limits.cancel_grace_ns
        spare_ns: dict[int, int] = {}
        for task_id, slot in sorted(cluster.kept_slots.items()):
            node_id = cluster.table.ids[slot]
            assert node_id is not None
            gpus = int(offers.gpus_free[slot]) if len(offers.gpus_free) else 0
            room = Room(int(offers.promise[slot]), float(offers.cpus_free[slot]), gpus)
            tasks = [cluster.tasks[i] for i in sorted(cluster.nodes[node_id].task_ids)]
            free_ns = free_at_ns(cluster.queue.shape(task_id), room, tasks, grace_ns)
            if free_ns is not None:
                spare_ns[slot] = free_ns - grace_ns - results.now_ns
        return spare_ns

    def _give_up_kept_nodes(self, results: Results) -> None:
        """Give up nodes that cannot take any more what they are kept for; others may go there."""
        cluster, offers = self.cluster, results.offers
        for task_id, slot in list(cluster.kept_slots.items()):
            if not able_when_empty(offers, cluster.queue.shape(task_id))[slot]:
                del cluster.kept_slots[task_id]

    def _keep_nodes(self, results: Results) -> None:
        """Keep a node free for tasks that others have overtaken for too long."""
        cluster, offers = self.cluster, results.offers
        if not cluster.overtaken_since_ns:
            return
        kept_max = max(1, int(offers.open.sum()) // 4)
        taken = np.zeros(results.count, dtype=np.bool_)
        taken[list(cluster.kept_slots.values())] = True
        for task_id, since_ns in sorted(cluster.overtaken_since_ns.items()):
            if len(cluster.kept_slots) >= kept_max:
                break
            waited_ns = results.now_ns - since_ns
            if task_id in cluster.kept_slots or waited_ns < cluster.limits.overtaken_max_ns:
                continue
            found = node_to_keep(offers, cluster.queue.shape(task_id), taken)
            if found is not None:
                cluster.kept_slots[task_id] = found
                taken[found] = True

    def trigger_alerts(self, results: Results) -> None:
        """Move every alert on by what holds now; firing and resolving is told."""
        alerts, rows, now_ns = self.cluster.alerts, self.cluster.task_rows, results.now_ns
        node_ids = self.cluster.table.ids[: results.count]
        changes = [
            change for row in rows.take_gone() for change in alerts.forget(row, now_ns, Scope.TASK)
        ]
        changes += alerts.advance(results.rules, node_ids, now_ns, rows.subjects)
        for change in changes:
            self._commands.append(SaveAlert(change.alert))
            if change.notify:
                self._commands.append(Notify(change.alert))

    def allocate_memory(self, metrics: Metrics) -> None:
        """Reserve each planned assignment in the ledger; one that is refused is withdrawn."""
        for placement in self._planned:
            try:
                self._commit(placement, metrics.now_ns)
            except NoRoom:
                self._withdraw(placement, "NO_NODE_WITH_MEMORY")
            except PoolIsExhausted:
                self._withdraw(placement, "POOL_EXHAUSTED")
            except LimitReached:
                self._withdraw(placement, "RUNNING_LIMIT")

    def _commit(self, placement: Placement, now_ns: int) -> None:
        """Reserve, and only then let the task be assigned; raises what `reserve` raises."""
        cluster = self.cluster
        node_id = cluster.table.ids[placement.slot]
        assert node_id is not None
        task = cluster.tasks[placement.task_id]
        record = cluster.nodes[node_id]
        free = (index for index in range(record.node.gpus) if index not in record.gpus_taken)
        elastic = (
            cluster.limits.memory_limits is MemoryLimits.ELASTIC and not task.spec.memory_exact
        )
        size_bytes = placement.shape.memory_request_bytes
        decided = None if placement.need is None else cluster.learning.decide(placement.need)
        task = replace(
            with_state(task, TaskState.ASSIGNED, *(AHEAD_REASON if placement.ahead else ())),
            attempt=task.attempt + 1,
            node_id=node_id,
            instance_id=record.node.instance_id,
            gpu_indexes=tuple(itertools.islice(free, task.spec.gpus)),
            not_before_ns=0,
            assigned_at_ns=now_ns,
            started_at_ns=0,
            memory_limit_bytes=task.spec.memory_limit_bytes or (None if elastic else size_bytes),
            memory_size_bytes=size_bytes,
            memory_elastic=elastic,
            memory_expected_peak_bytes=0 if decided is None else decided.expected_peak_bytes,
            memory_reason="" if decided is None else decided.reason,
        )
        cluster.reserve(task, placement.slot)
        cluster.put_task(task)
        self._commands.append(SaveTask(task))
        self._commands.append(SendAssignment(node_id, task))

    def _withdraw(self, placement: Placement, code: str) -> None:
        """Leave a task waiting whose reservation was refused."""
        nodes = int(np.count_nonzero(self.cluster.table.open))
        free_bytes = max(0, self.cluster.ledger.free_bytes(placement.slot))
        refusal = Refusal(code, nodes, placement.slot, free_bytes)
        self.cluster.refusals.add(placement.shape, refusal)

    def display_results(self, results: Results) -> None:
        """Publish what the shells show: lists, explanations, the live view."""
        self.displayed = results

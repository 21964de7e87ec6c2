"""The whole state: nodes, open tasks, reservations, samples, alerts. `check` asserts every
invariant; only the scheduler and its handlers change anything here."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TypeVar

from allocator.ledger import Ledger, LedgerFull
from allocator.pool import Pool, PoolExhausted
from allocator.tails import TailKey, Tails
from controller.core.accounts import Accounts
from controller.core.alerts import Alerts
from controller.core.arrays import Arrays
from controller.core.dependencies import Dependencies
from controller.core.ends import EndsLately
from controller.core.errors import InvalidRequest, LimitReached, PoolIsExhausted
from controller.core.guard_log import GuardLog
from controller.core.history import History
from controller.core.learning import Learning
from controller.core.limits import Limits
from controller.core.metrics import Scope
from controller.core.model import (
    PLACED_STATES,
    WAITING_STATES,
    Alert,
    Attempt,
    Dependency,
    MemoryReservation,
    Node,
    NodeState,
    OutputStream,
    Scheduling,
    Submission,
    Task,
    TaskState,
)
from controller.core.needs import Need, need_of
from controller.core.nodes import NodeRecord, NodeTable
from controller.core.placement import Refusals
from controller.core.promise import capacity_bytes
from controller.core.queue import PendingQueue
from controller.core.renewed import replace
from controller.core.rules import RuleSet
from controller.core.task_rows import TaskRows

T = TypeVar("T")


class Cluster:
    """What the core knows. Memory that grows with the fleet lies in the given pool."""

    def __init__(self, limits: Limits, rules: RuleSet, pool: Pool) -> None:
        self.limits = limits
        self.rules = rules
        self.pool = pool
        self.history = History(pool, limits, rules.window_metrics, rules.custom_metrics)
        self.ledger = Ledger(
            pool, limits.nodes_max, limits.tasks_running_max + limits.reservations_max
        )
        self.tails = Tails(pool, limits.tasks_running_max * len(OutputStream))
        self.alerts = Alerts(rules.rules, limits)
        self.task_rows = TaskRows(limits.tasks_running_max)  # filled where a rule is of tasks
        self.nodes: dict[str, NodeRecord] = {}
        self.table = NodeTable(limits.nodes_max)
        self.leaving: set[str] = set()  # nodes with leaving_until_ns
        self.unsettled: set[str] = set()  # nodes with missing attempts
        self.tasks: dict[int, Task] = {}  # open ones; ended ones live in the store
        self.reservations: dict[int, int] = {}  # task id -> handle in the ledger
        self.learning = Learning(limits)
        self.queue = PendingQueue(self.need_of, self.learning.sizes_bytes)
        self.guard_log = GuardLog()
        self.resampled: set[int] = set()  # slots of which samples came since the last cycle
        self.dependencies = Dependencies()
        self.ends = EndsLately()
        self.delayed: dict[int, int] = {}  # waiting tasks that may not start before this instant
        self.arrays = Arrays()
        self.accounts = Accounts()
        self.category_tasks: dict[str, int] = {}  # how many of each are placed
        self.brief: set[int] = set()  # placed tasks that were expected to end soon
        self.ahead: set[int] = set()  # placed tasks that their nodes hold until there are CPUs
        self.draining: set[str] = set()  # nodes that wait for their last task
        self.memory_reservations: dict[int, MemoryReservation] = {}
        self.memory_handles: dict[int, int] = {}  # reservation id -> handle in the ledger
        self.next_reservation_id = 1
        self.submissions: OrderedDict[str, Submission] = OrderedDict()
        self.next_task_id = 1
        self.cluster_id = ""  # names the store that all ids are of
        # Why the waiting tasks of a shape were refused in the last cycle.
        self.refusals = Refusals()
        # Waiting tasks that later ones were placed past, and since when; who keeps which node.
        self.overtaken_since_ns: dict[int, int] = {}
        self.kept_slots: dict[int, int] = {}
        self._woken_ns = 0  # what was delayed up to here is in the queue
        self._settling_until_ns = 0  # after a restart, while known nodes come back

    def need_of(self, task: Task) -> Need | None:
        """Return what a waiting task's size follows from; None where it is its request."""
        return need_of(task, self.limits.memory_limits)

    def put_task(self, task: Task) -> None:
        """Make this the value of a task, and keep queue and node membership in step with it."""
        before = self.tasks.get(task.id)
        if before is not None and before.state in PLACED_STATES:
            self._leave_node(before)
        if task.array_id:
            self.arrays.change(before, task)
        if task.state is TaskState.PENDING:
            if before is not None and before.priority != task.priority:
                self.queue.remove(task.id)
            self._wait(task)
        else:
            self.queue.remove(task.id)
            self.delayed.pop(task.id, None)
            self.overtaken_since_ns.pop(task.id, None)
            self.kept_slots.pop(task.id, None)
        if task.ended:
            self.tasks.pop(task.id, None)
            self.dependencies.remove(task.id, task.spec.after)
            return
        self.tasks[task.id] = task
        if task.state in PLACED_STATES:
            self._join_node(task)

    def _wait(self, task: Task) -> None:
        """Put a waiting task where it waits: for other tasks, for its time, or for a node."""
        if task.id in self.queue or task.id in self.dependencies:
            return
        if task.not_before_ns > self._woken_ns:
            self.delayed[task.id] = task.not_before_ns
        else:
            self.queue.add(task)

    def wake(self, now_ns: int) -> bool:
        """Let the tasks be placed whose time has come; say if there are any."""
        self._woken_ns = max(self._woken_ns, now_ns)
        due = sorted(i for i, not_before_ns in self.delayed.items() if not_before_ns <= now_ns)
        for task_id in due:
            del self.delayed[task_id]
            self.queue.add(self.tasks[task_id])
        return bool(due)

    def complete(self, thing_id: int) -> None:
        """Let the tasks go on that waited for this task or array, which has ended as they hoped."""
        for task_id in self.dependencies.complete(thing_id):
            task = self.tasks[task_id]
            if task.state is TaskState.PENDING:
                self._wait(task)

    def is_open(self, thing_id: int) -> bool:
        """Say whether a task, or an element of an array, with this id has not ended."""
        return thing_id in self.tasks or thing_id in self.arrays

    def unmet(self, task: Task) -> tuple[Dependency, ...]:
        """Return the dependencies of a task that have not ended."""
        return tuple(wanted for wanted in task.spec.after if self.is_open(wanted.task_id))

    def _join_node(self, task: Task) -> None:
        record = self.nodes[task.node_id]
        record.task_ids.add(task.id)
        self.accounts.add(task)
        category = task.spec.category
        self.category_tasks[category] = self.category_tasks.get(category, 0) + 1
        if task.spec.gpus:
            record.gpus_taken.update(task.gpu_indexes)
            self.table.gpus_used[record.slot] += task.spec.gpus
        self.table.cpus_used[record.slot] += task.spec.cpus
        if self.learning.is_brief(task.spec):
            self.brief.add(task.id)
        else:
            self.table.long_tasks[record.slot] += 1
        if task.is_ahead:
            self.ahead.add(task.id)
            self.table.held[record.slot] += 1

    def _leave_node(self, task: Task) -> None:
        record = self.nodes[task.node_id]
        record.task_ids.discard(task.id)
        self.accounts.remove(task)
        category = task.spec.category
        self.category_tasks[category] -= 1
        if not self.category_tasks[category]:
            del self.category_tasks[category]
        if task.spec.gpus:
            record.gpus_taken.difference_update(task.gpu_indexes)
            self.table.gpus_used[record.slot] -= task.spec.gpus
        if task.id in self.brief:
            self.brief.discard(task.id)
        else:
            self.table.long_tasks[record.slot] -= 1
        if task.is_ahead:
            self.ahead.discard(task.id)
            self.table.held[record.slot] -= 1
        # Not below zero by a rounding error, and exactly zero when nothing is left.
        left = float(self.table.cpus_used[record.slot]) - task.spec.cpus
        self.table.cpus_used[record.slot] = max(0.0, left) if record.task_ids else 0.0

    def note_not_brief(self, node_id: str) -> None:
        """Note that what runs on a node was not brief: nothing brief is sent ahead behind it."""
        record = self.nodes[node_id]
        for task_id in record.task_ids & self.brief - self.ahead:
            self.brief.discard(task_id)
            self.table.long_tasks[record.slot] += 1

    def silent_tasks(self, now_ns: int) -> dict[str, int]:
        """Return by category how many placed tasks were not measured lately. One pass over them."""
        silent: dict[str, int] = {}
        for task_id in self.reservations:
            task = self.tasks[task_id]
            if self.learning.is_silent(task, now_ns):
                silent[task.spec.category] = silent.get(task.spec.category, 0) + 1
        return silent

    def reserve(self, task: Task, slot: int, size_bytes: int | None = None) -> None:
        """Set the task's size aside on a node, or the given one.

        Raises:
            NoRoom: the node's reserved sum would pass its capacity.
            PoolIsExhausted: the pool has no room even after histories and tails gave way.
            LimitReached: tasks_running_max reservations are in use.
        """
        assert task.id not in self.reservations
        wanted_bytes = task.memory_size_bytes if size_bytes is None else size_bytes
        try:
            handle = self.with_room(
                lambda: self.ledger.reserve(slot, wanted_bytes, task.id, task.attempt)
            )
        except LedgerFull as error:
            raise LimitReached(
                f"{self.limits.tasks_running_max} tasks are running, which is the bound"
            ) from error
        self.reservations[task.id] = handle

    def release(self, task_id: int) -> None:
        """Give a task's reservation back and forget its output tails; none changes nothing."""
        handle = self.reservations.pop(task_id, None)
        task = self.tasks[task_id]
        if handle is not None:
            self.ledger.release(handle)
            self.learning.forget(task)
        for stream in OutputStream:
            self.tails.drop(TailKey(task_id, task.attempt, stream.value))

    def note_freed(self, task: Task) -> None:
        """Note that what a placed task used is free again, before a sample can show it.

        Else its memory would count as that of others until the next sample, and wait so long. It is
        nothing where the last sample shows it already: such a one does not list the task.
        """
        used_bytes = self.ledger.read(self.reservations[task.id]).used_bytes
        self.table.freed_bytes[self.nodes[task.node_id].slot] += used_bytes

    def set_aside(self, reservation: MemoryReservation) -> None:
        """Set memory aside for something that is not a task.

        Raises:
            NoRoom: the node's reserved sum would pass its capacity.
            PoolIsExhausted: the pool has no room even after histories and tails gave way.
        """
        assert len(self.memory_reservations) < self.limits.reservations_max
        record = self.nodes[reservation.node_id]
        # Below 0, which no task has.
        handle = self.with_room(
            lambda: self.ledger.reserve(record.slot, reservation.memory_bytes, -reservation.id, 0)
        )
        self.memory_handles[reservation.id] = handle
        self.memory_reservations[reservation.id] = reservation
        record.reservation_ids.add(reservation.id)
        self.table.reservations[record.slot] += 1

    def give_back(self, reservation_id: int) -> None:
        """End a reservation of memory for something that is not a task."""
        self.ledger.release(self.memory_handles.pop(reservation_id))
        record = self.nodes[self.memory_reservations.pop(reservation_id).node_id]
        record.reservation_ids.discard(reservation_id)
        self.table.reservations[record.slot] -= 1

    def with_room(self, action: Callable[[], T]) -> T:
        """Run an action that takes pool memory, making room in the fixed order when it is full."""
        while True:
            try:
                return action()
            except PoolExhausted as error:
                if not self._give_way():
                    raise PoolIsExhausted(
                        f"the controller's memory pool of {self.pool.statistics().capacity_bytes}"
                        f" bytes is full ({error})"
                    ) from error

    def _give_way(self) -> bool:
        """Free pool memory by the next step of the fixed order; False when nothing is left."""
        if self.history.series.shorten() > 0:
            return True
        if not self.tails.is_stopped:
            self.tails.stop()
            return True
        return False

    def recover_room(self) -> None:
        """Take one step back in the order of giving way, once there is plenty of room again."""
        statistics = self.pool.statistics()
        if statistics.used_bytes * 2 > statistics.capacity_bytes:
            return
        if self.tails.is_stopped:
            self.tails.resume()
        elif self.history.series.level > 0:
            self.history.series.lengthen()

    def append_tail(self, task_id: int, attempt: int, stream: OutputStream, data: bytes) -> None:
        """Keep the newest output of a running task; without room all tails are given up."""
        task = self.tasks.get(task_id)
        if task is None or task.attempt != attempt or task.state not in PLACED_STATES:
            return
        try:
            key = TailKey(task_id, attempt, stream.value)
            self.with_room(lambda: self.tails.append(key, data))
        except PoolIsExhausted:
            self.tails.stop()

    def add_node(self, node: Node, now_ns: int, stream: int | None) -> NodeRecord:
        """Give a new node a slot.

        Raises:
            LimitReached: nodes_max nodes are known.
            PoolIsExhausted: the pool has no room for its history.
        """
        assert node.id not in self.nodes
        if len(self.nodes) >= self.limits.nodes_max:
            raise LimitReached(
                f"node '{node.id}' is one too many: the controller was started with"
                f" --nodes-max {self.limits.nodes_max}",
                nodes_max=self.limits.nodes_max,
            )
        slot = self.with_room(self.history.add_node)
        record = NodeRecord(node, slot, NodeState.JOINING, now_ns, stream)
        self.nodes[node.id] = record
        self.set_node(record)
        return record

    def remove_node(self, node_id: str) -> NodeRecord:
        """Forget a node without tasks and reservations; its slot may become another's."""
        record = self.nodes.pop(node_id)
        assert not record.task_ids
        assert not record.reservation_ids
        for task_id, slot in list(self.kept_slots.items()):
            if slot == record.slot:
                del self.kept_slots[task_id]
        for names in (self.leaving, self.unsettled, self.draining):
            names.discard(node_id)
        self.guard_log.forget_node(node_id)
        self.resampled.discard(record.slot)
        self.ledger.clear_node(record.slot)
        self.table.clear(record.slot)
        self.history.remove_node(record.slot)
        return record

    def set_node(self, record: NodeRecord) -> None:
        """Bring row and capacity in step with a node that has joined or changed."""
        capacity = self._capacity(record)
        # One that was lowered under running tasks leaves them what they have.
        record.capacity_max_bytes = max(
            capacity, min(record.capacity_max_bytes, int(self.ledger.reserved_bytes[record.slot]))
        )
        self.ledger.set_node(record.slot, capacity)
        self.table.put(record)

    def touch(self, record: NodeRecord, now_ns: int, sampled: bool = False) -> None:
        """Note that a node was heard of on its stream; a sample makes it ready."""
        record.last_seen_ns = now_ns
        self.table.last_seen_ns[record.slot] = now_ns
        record.sampled = record.sampled or sampled
        state = NodeState.READY if record.sampled else NodeState.JOINING
        record.state = state
        if sampled and record.task_ids:
            self.resampled.add(record.slot)
        if not self.table.open[record.slot]:
            self.table.refresh_open(record)

    def close_leaving(self, node_id: str, now_ns: int) -> None:
        """Give nothing more to an agent that ends its attempts unasked: mostly it is ending
        itself. Bounded in time, for an agent that has lost its lease does the same and stays."""
        record = self.nodes[node_id]
        record.leaving_until_ns = now_ns + self.limits.lease_margin_ns
        self.leaving.add(node_id)
        self.table.refresh_open(record)

    def reopen_left(self, now_ns: int) -> bool:
        """Open the nodes again that were closed for leaving and are still there; say if any."""
        due = sorted(
            node_id for node_id in self.leaving if self.nodes[node_id].leaving_until_ns <= now_ns
        )
        for node_id in due:
            record = self.nodes[node_id]
            record.leaving_until_ns = 0
            self.leaving.discard(node_id)
            self.table.refresh_open(record)
        return bool(due)

    def restore(
        self,
        *,
        tasks: tuple[Task, ...],
        nodes: tuple[Node, ...],
        alerts: tuple[Alert, ...],
        submissions: tuple[Submission, ...],
        next_task_id: int,
        now_ns: int,
        reservations: tuple[MemoryReservation, ...] = (),
        next_reservation_id: int = 1,
        cluster_id: str = "",
    ) -> None:
        """Take over what the store remembers. The ledger is derived: it is built anew from it."""
        assert not self.tasks
        assert not self.nodes
        for node in nodes:
            record = self.add_node(node, now_ns, None)
            record.state = NodeState.UNREACHABLE
            self.table.refresh_open(record)
            if node.scheduling is Scheduling.DRAINING:
                self.draining.add(node.id)
        placed = [task for task in tasks if task.state in PLACED_STATES]
        wanted: dict[str, int] = {}
        elastic: dict[str, int] = {}
        for reservation in reservations:
            wanted[reservation.node_id] = (
                wanted.get(reservation.node_id, 0) + reservation.memory_bytes
            )
        for task in placed:
            sums = elastic if task.memory_elastic else wanted
            sums[task.node_id] = sums.get(task.node_id, 0) + task.memory_size_bytes
        rooms: dict[str, int] = {}  # of elastic tasks
        for node_id in sorted({*wanted, *elastic}):
            # A capacity that was lowered under running tasks must not lose their reservations.
            record = self.nodes[node_id]
            capacity, fixed = self._capacity(record), wanted.get(node_id, 0)
            rooms[node_id] = min(elastic.get(node_id, 0), max(0, capacity - fixed))
            record.capacity_max_bytes = max(fixed + rooms[node_id], capacity)
            self.ledger.set_node(record.slot, record.capacity_max_bytes)
        self._woken_ns = now_ns
        for task in tasks:
            if task.state in WAITING_STATES and task.spec.after:
                continue
            self.put_task(task)
        # An end that disappoints a waiting task ends it too, in one transaction. So whatever is
        # not open any more has ended as was hoped.
        self._restore_waiting([t for t in tasks if t.state in WAITING_STATES and t.spec.after])
        for task in placed:
            size_bytes = task.memory_size_bytes
            if task.memory_elastic and elastic[task.node_id]:
                # What they had reserved is not saved: it follows what they use, which the next
                # samples say, and nothing is placed before those. Until then they share what fits.
                size_bytes = size_bytes * rooms[task.node_id] // elastic[task.node_id]
            self.reserve(task, self.nodes[task.node_id].slot, size_bytes)
        for reservation in reservations:
            self.set_aside(reservation)
        self.next_reservation_id = next_reservation_id
        for node_id in rooms:
            self.set_node(self.nodes[node_id])
        for submission in submissions:
            self.submissions[submission.request_id] = submission
        self.next_task_id = next_task_id
        self.cluster_id = cluster_id
        self._settling_until_ns = now_ns + self.limits.sample_hold_ns
        self.hope(now_ns)
        slots = {record.node.id: record.slot for record in self.nodes.values()}
        self.update_task_rows()
        self.alerts.restore(alerts, slots, now_ns, self.task_rows.by_subject())

    def learn(self, attempts: Iterable[Attempt]) -> None:
        """Take over what earlier attempts told, oldest first; before anything is placed."""
        for attempt in attempts:
            self.learning.observe(attempt)

    def _restore_waiting(self, tasks: list[Task]) -> None:
        still_open = {task.id for task in tasks} | {t.array_id for t in tasks if t.array_id}
        for task in tasks:
            unmet = [
                wanted
                for wanted in task.spec.after
                if self.is_open(wanted.task_id) or wanted.task_id in still_open
            ]
            self.dependencies.add(task.id, unmet)
        for task in tasks:
            self.put_task(task)

    def _capacity(self, record: NodeRecord) -> int:
        return capacity_bytes(
            record.node.memory_total_bytes, record.node.memory_declared_bytes, self.limits
        )

    def largest_capacity_bytes(self) -> int:
        """Return what the largest node can give, in bytes; 0 without a node."""
        return int(self.ledger.capacity_bytes[: self.table.count].max(initial=0))

    def hope(self, now_ns: int, seen_bytes: int | None = None) -> None:
        """Let tasks that used more than open nodes give wait a while for closed ones.

        Not after the end of one that an open node could give more than the `seen_bytes` it used:
        that is no reason for others to wait.
        """
        count = self.table.count
        capacity, is_open = self.ledger.capacity_bytes[:count], self.table.open[:count]
        largest_bytes = min(int(capacity[is_open].max(initial=0)), self.learning.lately_bytes)
        if seen_bytes is not None and seen_bytes < largest_bytes:
            return
        self.learning.hope(now_ns, int(capacity[~is_open].max(initial=0)))

    def reconfigure(self, rules: RuleSet, limits: Limits, now_ns: int) -> None:
        """Go on with other rules and limits. The bounds that the pool was laid out for stay.

        Raises:
            InvalidRequest: a rule looks back on a metric of which no history is kept. The pool was
                sized at the start; making room for more now could cost the histories there are.
        """
        undeclared = sorted(set(rules.custom_metrics) - self.history.custom.keys())
        if undeclared:
            raise InvalidRequest(
                f"no values of {', '.join(undeclared)} are kept since the start, and a rule file"
                " declares it: it needs a restart"
            )
        missing = sorted(rules.window_metrics - self.history.kept)
        if missing:
            raise InvalidRequest(
                f"no history of {', '.join(missing)} is kept since the start, and a rule has a"
                " window over it: it needs a restart"
            )
        assert limits.nodes_max == self.limits.nodes_max
        assert limits.categories_max == self.limits.categories_max
        assert limits.tasks_running_max == self.limits.tasks_running_max
        self.rules, self.limits = rules, limits
        self.learning.reconfigure(limits)
        self.queue.sort_anew(self.tasks)
        self.alerts.replace_rules(rules.rules, now_ns)

    def is_settled(self, now_ns: int) -> bool:
        """Say whether every node that was known at the start has been heard, or had its time."""
        if now_ns < self._settling_until_ns and not all(r.sampled for r in self.nodes.values()):
            return False
        self._settling_until_ns = 0
        return True

    def update_task_rows(self) -> None:
        """Bring the rows of running tasks in step with them, where a rule looks at tasks."""
        if Scope.TASK not in self.rules.scopes:
            self.task_rows.update(())
            return
        placed = (self.tasks[task_id] for task_id in self.reservations)
        self.task_rows.update(task for task in placed if task.started_at_ns)

    def close(self) -> None:
        """Give all memory back to the pool."""
        self.tails.stop()
        self.ledger.close()
        self.history.series.close()

    def check(self) -> None:
        """Assert every invariant. Cost: linear in nodes, open tasks and pool blocks."""
        self.pool.check()
        self.history.series.check()
        self.ledger.check()
        self.alerts.check()
        placed = {i for i, task in self.tasks.items() if task.state in PLACED_STATES}
        waiting = {i for i, task in self.tasks.items() if task.state is TaskState.PENDING}
        assert set(self.reservations) == placed, "a reservation for each placed task, no other"
        self._check_waiting(waiting)
        self.learning.check({(i, self.tasks[i].attempt) for i in placed})
        assert all(task_id < self.next_task_id for task_id in self.tasks)
        by_node: dict[str, set[int]] = {}
        for task_id in placed:
            task = self.tasks[task_id]
            assert task.attempt > 0
            by_node.setdefault(task.node_id, set()).add(task_id)
            entry = self.ledger.read(self.reservations[task_id])
            assert (entry.task_id, entry.slot) == (task_id, self.nodes[task.node_id].slot)
        for node_id, record in self.nodes.items():
            assert (node_id in self.leaving) == (record.leaving_until_ns > 0)
            assert (node_id in self.unsettled) == bool(record.missing)
            assert record.task_ids == by_node.get(node_id, set())
            assert self.table.ids[record.slot] == node_id
            self._check_sums(record)
        assert set(self.kept_slots) <= waiting
        assert set(self.overtaken_since_ns) <= waiting

    def _check_waiting(self, waiting: set[int]) -> None:
        """Assert that each waiting task waits in one place: for others, for its time, in line."""
        self.dependencies.check()
        self.arrays.check(self.tasks)
        for task_id in waiting:
            places = (task_id in self.queue, task_id in self.delayed)
            assert sum(places) == (task_id not in self.dependencies), f"task {task_id}"
        assert len(self.queue) + len(self.delayed) <= len(waiting)
        for task_id, task in self.tasks.items():
            unmet = [wanted.task_id for wanted in task.spec.after if self.is_open(wanted.task_id)]
            waits_for = self.dependencies.waits_for(task_id, task.spec.after)
            assert unmet == waits_for, f"task {task_id} waits for {waits_for}, open are {unmet}"

    def _check_sums(self, record: NodeRecord) -> None:
        """Assert that ledger and table say of a node what its tasks add up to."""
        slot, specs = record.slot, [self.tasks[task_id].spec for task_id in record.task_ids]
        reserved_bytes = 0
        for task_id in record.task_ids:
            task = self.tasks[task_id]
            entry = self.ledger.read(self.reservations[task_id])
            reserved_bytes += entry.reserved_bytes
            assert task.memory_elastic or entry.reserved_bytes == task.memory_size_bytes
        for reservation_id in record.reservation_ids:
            reserved_bytes += self.memory_reservations[reservation_id].memory_bytes
        assert reserved_bytes <= record.capacity_max_bytes, "more is reserved than can be given"
        assert self.table.reservations[slot] == len(record.reservation_ids)
        assert self.ledger.count[slot] == len(specs) + len(record.reservation_ids)
        indexes = [i for task_id in record.task_ids for i in self.tasks[task_id].gpu_indexes]
        assert len(indexes) == len(set(indexes)), "a GPU has two tasks"
        assert record.gpus_taken == set(indexes)
        assert self.table.gpus_used[slot] == sum(spec.gpus for spec in specs)
        assert self.ledger.reserved_bytes[slot] == reserved_bytes
        assert self.ledger.capacity_bytes[slot] == self._capacity(record)
        assert abs(float(self.table.cpus_used[slot]) - sum(spec.cpus for spec in specs)) < 1e-6
        assert self.table.long_tasks[slot] == len(record.task_ids - self.brief)
        assert self.table.held[slot] == len(record.task_ids & self.ahead)


def with_state(task: Task, state: TaskState, code: str = "", reason: str = "") -> Task:
    """Return the task in another state with the reason for it."""
    return replace(task, state=state, reason_code=code, reason=reason)

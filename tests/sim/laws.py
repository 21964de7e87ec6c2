"""What must hold in every simulated world, seen from outside: from the machines, the disk and
the words that were exchanged. A law that is broken raises LawBroken with the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mass.v1 import agent_pb2

from agent.attempt import Ended, Key, Report
from controller.core.cluster import Cluster
from controller.core.commands import Save, SaveAttempt, SaveNode, SaveTask
from controller.core.dependencies import fulfils
from controller.core.model import (
    PLACED_STATES,
    Attempt,
    MemoryReservation,
    Node,
    Scheduling,
    Task,
    TaskAction,
    TaskState,
)
from controller.core.task_events import NODE_DRAINED

if TYPE_CHECKING:
    from sim.machines import Machine
    from sim.world import World


class LawBroken(AssertionError):
    """A promise does not hold; the message says which and where."""


@dataclass(slots=True)
class Execution:
    """What the world knows of one attempt that had a process."""

    node_id: str
    alive: bool = True
    end_kept: bool = False  # its end is in the spool of a disk that was not lost


@dataclass(slots=True)
class Laws:
    """The laws of one world."""

    world: World
    accepted: dict[str, tuple[int, ...]] = field(default_factory=dict)
    accepted_ids: list[int] = field(default_factory=list)
    executions: dict[Key, Execution] = field(default_factory=dict)
    given_back: set[int] = field(default_factory=set)  # reservations that somebody gave back
    _alive: dict[int, Key] = field(default_factory=dict)  # task id: its one live attempt
    _ended: set[Key] = field(default_factory=set)  # attempts whose end their agent has reported
    _said: dict[str, int] = field(default_factory=dict)  # the last sequence each agent has sent
    _placed: list[Task] = field(default_factory=list)  # by the present commit

    # Machines.

    def process_began(self, machine: Machine, key: Key) -> None:
        """A task has one process at most, an attempt never two, an ended task none."""
        task = self.world.disk.tasks.get(key[0])
        _demand(task is not None, f"task {key[0]} runs and was never saved")
        assert task is not None
        other = self._alive.get(key[0])
        if other is not None:
            where = self.executions[other].node_id
            raise LawBroken(
                f"task {key[0]} runs twice: attempt {other[1]} on {where}, attempt {key[1]} on"
                f" {machine.node_id}"
            )
        _demand(key not in self.executions, f"attempt {key} is run a second time")
        _demand(not task.ended, f"task {key[0]} runs and is saved as {task.state.value}")
        self._may_start(task)
        self.executions[key] = Execution(machine.node_id)
        self._alive[key[0]] = key
        reserved = sum(
            self.world.disk.tasks[other[0]].memory_size_bytes
            for other in machine.processes
            if not self.world.disk.tasks[other[0]].memory_elastic
        )
        capacity = self.world.capacity_bytes
        _demand(reserved <= capacity, f"{reserved} bytes run on {machine.node_id} of {capacity}")

    def _may_start(self, task: Task) -> None:
        """What a task waits for has ended as it hopes; an array keeps to its bound."""
        tasks = self.world.disk.tasks
        for wanted in task.spec.after:
            for other in tasks.values():
                if wanted.task_id in (other.id, other.array_id):
                    met = other.ended and fulfils(wanted.kind, other.state)
                    _demand(met, f"task {task.id} runs, {other.id} is {other.state.value}")
        if task.spec.array_running_max:
            running = [i for i in self._alive if tasks[i].array_id == task.array_id]
            bound = task.spec.array_running_max
            _demand(len(running) < bound, f"of array {task.array_id} run {running} and {task.id}")

    def process_gone(self, machine: Machine, key: Key) -> None:
        """Note that a process and its tree are gone."""
        self.executions[key].alive = False
        del self._alive[key[0]]

    def end_kept(self, key: Key, ended: Ended) -> None:
        """Note that an end is in a spool; from here on no crash may lose it."""
        self._ended.add(key)
        if key in self.executions:
            self.executions[key].end_kept = True

    def disk_lost(self, node_id: str, spool: Mapping[Key, Ended]) -> None:
        """Note that a machine went down with what its disk had not written."""
        for key in spool:
            if key in self.executions:
                self.executions[key].end_kept = False

    # The store.

    def before_commit(self, saves: Sequence[Save]) -> None:
        """An end is final, attempts only count up, and a kept end is not called lost."""
        changed: dict[int, Task] = {}
        self._placed = []
        for save in saves:
            if isinstance(save, SaveAttempt):
                self._is_over(save.attempt)
            if not isinstance(save, SaveTask):
                continue
            task = save.task
            before = changed.get(task.id) or self.world.disk.tasks.get(task.id)
            changed[task.id] = task
            if before is None:
                continue
            if task.state is TaskState.ASSIGNED and task.attempt > before.attempt:
                self._placed.append(task)
            held = before.state is TaskState.HELD and task.state in PLACED_STATES
            _demand(not held, f"task {task.id} is held and was placed on {task.node_id}")
            if before.ended:
                same = before.state is task.state
                _demand(same, f"task {task.id} was {before.state.value}, now {task.state.value}")
            _demand(task.attempt >= before.attempt, f"task {task.id} goes back to {task.attempt}")
            self._not_lost(before, task)

    def committed(self, saves: Sequence[Save]) -> None:
        """No task that was accepted is missing, none is placed on a node that is to take none."""
        tasks = self.world.disk.tasks
        for task in self._placed:
            node = self.world.disk.nodes[task.node_id]
            is_open = node.scheduling is Scheduling.ENABLED
            _demand(is_open, f"task {task.id} is placed on {node.id}, {node.scheduling.value}")
        for task_id in self.accepted_ids:
            _demand(task_id in tasks, f"task {task_id} was accepted and is missing")
        # By the last word of a turn: it may have been opened again in the same one.
        nodes = {save.node.id: save.node for save in saves if isinstance(save, SaveNode)}
        for node_id, node in nodes.items():
            if node.scheduling is Scheduling.DRAINED:
                placed = (task for task in tasks.values() if task.state in PLACED_STATES)
                left = [task.id for task in placed if task.node_id == node_id]
                _demand(not left, f"{node_id} is called DRAINED and has tasks {left}")

    def _is_over(self, attempt: Attempt) -> None:
        """What is saved as over does not run, and how it ended its own agent has said."""
        key = (attempt.task_id, attempt.number)
        outcome, execution = attempt.outcome, self.executions.get(key)
        runs = execution is not None and execution.alive
        _demand(not runs, f"attempt {key} runs and is saved as {outcome.value}: {attempt.reason}")
        reported = key in self._ended or outcome is TaskState.LOST
        _demand(reported, f"attempt {key} is saved as {outcome.value}, which nobody reported")

    def _not_lost(self, before: Task, task: Task) -> None:
        given_up = "no longer has it" in task.reason or "has left" in task.reason
        if before.state not in PLACED_STATES or not given_up:
            return
        key = (before.id, before.attempt)
        execution = self.executions.get(key)
        if execution is None:
            return
        kept = execution.end_kept
        _demand(not kept, f"the end of attempt {key} was kept, and is called lost: {task.reason}")
        _demand(not execution.alive, f"attempt {key} is called lost and runs: {task.reason}")

    # What is told.

    def told(self, node_id: str, instance_id: str, message: agent_pb2.ControllerMessage) -> None:
        """Nothing is sent before it is saved."""
        tasks = self.world.disk.tasks
        for assignment in message.assignments.assignments:
            task = tasks.get(assignment.task_id)
            saved = (
                task is not None
                and task.attempt == assignment.attempt
                and task.node_id == node_id
                and task.state in PLACED_STATES
            )
            _demand(saved, f"task {assignment.task_id} is sent to {node_id} and was not saved")
        if message.HasField("stop"):
            stop = message.stop
            present = self._is_present(node_id, (stop.task_id, stop.attempt))
            drained = present and tasks[stop.task_id].reason_code == NODE_DRAINED
            # What only calls back one that was sent ahead changes nothing until it is answered.
            saved = not present or drained or stop.only_held or tasks[stop.task_id].cancelled
            _demand(saved, f"a stop of task {stop.task_id} is sent and was not saved")
        if message.HasField("freeze"):
            freeze = message.freeze
            if self._is_present(node_id, (freeze.task_id, freeze.attempt)):
                task = tasks[freeze.task_id]
                # A later decision of the same turn may have been saved with it.
                saved = task.state in (TaskState.PAUSED, TaskState.STOPPING, TaskState.RUNNING)
                _demand(saved, f"a freeze of task {task.id} is sent, it is {task.state.value}")
        if message.HasField("welcome"):
            for known in message.welcome.forget:
                mine = self._is_present(node_id, (known.task_id, known.attempt))
                _demand(not mine, f"{node_id} is to forget task {known.task_id}, which it runs")
            self._acknowledged(node_id, instance_id, message.welcome.acknowledged_sequence)
        if message.HasField("acknowledgement"):
            self._acknowledged(node_id, instance_id, message.acknowledgement.sequence)

    def submit_answered(
        self, request_id: str, ids: tuple[int, ...], task_ids: Sequence[int]
    ) -> None:
        """A submit is answered with what is saved, and with the same again."""
        tasks, submission = self.world.disk.tasks, self.world.disk.submissions.get(request_id)
        _demand(submission is not None, f"{request_id} is answered and was not saved")
        missing = [task_id for task_id in task_ids if task_id not in tasks]
        _demand(not missing, f"{request_id} is answered, tasks {missing} were not saved")
        before = self.accepted.get(request_id)
        if before is None:
            self.accepted[request_id] = ids
            self.accepted_ids += task_ids
        else:
            _demand(before == ids, f"{request_id} was answered {before}, now {ids}")

    def cancel_answered(self, ids: tuple[int, ...]) -> None:
        """A cancel is answered when it is saved."""
        for task_id in ids:
            task = self.world.disk.tasks[task_id]
            _demand(task.ended or task.cancelled, f"the cancel of {task_id} was not saved")

    def control_answered(self, ids: tuple[int, ...], action: TaskAction, refused: object) -> None:
        """What was asked is saved before it is answered."""
        assert isinstance(refused, tuple)
        for task_id, why in zip(ids, refused, strict=True):
            task = self.world.disk.tasks[task_id]
            if action is TaskAction.PRIORITY and not why:
                # It is the one that was submitted, or was saved.
                known = task.priority_set is not None or task.priority in (0, 1)
                _demand(known, f"the priority of task {task_id} was not saved")

    def reservation_answered(self, told: MemoryReservation) -> None:
        """A reservation is saved before it is answered."""
        saved = self.world.disk.reservations.get(told.id)
        # It may have been told of once more in the turn that found it expired, or gave it back.
        over = told.expires_at_ns <= self.world.timeline.now_ns() or told.id in self.given_back
        known = saved is not None or over
        _demand(known, f"reservation {told.id} is answered and was not saved")

    def release_answered(self, reservation_id: object) -> None:
        """What is given back is gone for good."""
        kept = reservation_id in self.world.disk.reservations
        _demand(not kept, f"reservation {reservation_id} was given back and is still saved")

    def node_answered(self, node: object) -> None:
        """What people decide of a node is saved before they are told."""
        assert isinstance(node, Node)
        saved = self.world.disk.nodes[node.id]
        # Of two decisions in one turn the later one is saved.
        at_ns, saved_at_ns = node.scheduling_since_ns, saved.scheduling_since_ns
        _demand(at_ns <= saved_at_ns, f"{node.id} is {node.scheduling.value}, that was not saved")

    def said(self, instance_id: str, sequence: int) -> None:
        """Note that an agent has sent its reports up to this one."""
        self._said[instance_id] = max(sequence, self._said.get(instance_id, 0))

    def _acknowledged(self, node_id: str, instance_id: str, sequence: int) -> None:
        """An acknowledgement never passes what that agent has said, nor what is saved of it."""
        said = self._said.get(instance_id, 0)
        _demand(sequence <= said, f"{instance_id} is acknowledged {sequence}, it has sent {said}")
        for report in self.world.reports.get(instance_id, ()):
            if report.sequence <= sequence:
                saved = self._is_saved(node_id, report)
                _demand(
                    saved,
                    f"{instance_id} is acknowledged {sequence}, its report {report.sequence} of"
                    f" attempt {report.key} was not saved",
                )

    def _is_saved(self, node_id: str, report: Report) -> bool:
        if not self._is_present(node_id, report.key):
            return True  # of an attempt that is over: there is nothing to save
        if isinstance(report.event, Ended):
            return False
        return self.world.disk.tasks[report.key[0]].started_at_ns != 0

    def _is_present(self, node_id: str, key: Key) -> bool:
        """Say whether this is saved as the present attempt of its task, on this node."""
        task = self.world.disk.tasks.get(key[0])
        return (
            task is not None
            and task.state in PLACED_STATES
            and (task.attempt, task.node_id) == (key[1], node_id)
        )

    # The controller.

    def turn_done(self, cluster: Cluster) -> None:
        """What the controller thinks is what is saved, and what it reserves is what is placed."""
        disk = self.world.disk
        saved = {task_id: task for task_id, task in disk.tasks.items() if not task.ended}
        if cluster.tasks != saved:
            differ = [
                task_id
                for task_id in sorted(cluster.tasks.keys() | saved.keys())
                if cluster.tasks.get(task_id) != saved.get(task_id)
            ]
            raise LawBroken(f"tasks {differ} differ from what is saved")
        _demand(cluster.next_task_id == disk.next_task_id, "the next task id is not saved")
        _demand(dict(cluster.submissions) == disk.submissions, "submissions differ from the saved")
        nodes = {node_id: record.node for node_id, record in cluster.nodes.items()}
        _demand(nodes == disk.nodes, "nodes differ from what is saved")
        aside = cluster.memory_reservations
        _demand(aside == disk.reservations, "reservations of memory differ from what is saved")
        ledger = cluster.ledger
        for node_id, record in cluster.nodes.items():
            reserved = int(ledger.reserved_bytes[record.slot])
            placed = [cluster.tasks[i] for i in sorted(record.task_ids)]
            wanted = sum(task.memory_size_bytes for task in placed if not task.memory_elastic)
            wanted += sum(aside[i].memory_bytes for i in record.reservation_ids)
            exact = not any(task.memory_elastic for task in placed)
            _demand(
                reserved == wanted if exact else reserved >= wanted,
                f"{reserved} bytes reserved on {node_id} for {wanted}",
            )
            capacity = int(ledger.capacity_bytes[record.slot])
            _demand(reserved <= capacity, f"{reserved} bytes reserved on {node_id} of {capacity}")

    def at_rest(self) -> None:
        """Without faults everything ends, and nothing is left over anywhere."""
        world = self.world
        left = [task.id for task in world.disk.tasks.values() if not task.ended]
        _demand(not left, f"tasks {left} never end")
        controller = world.controller
        assert controller is not None
        for machine in world.machines:
            node = world.disk.nodes[machine.node_id]
            if node.machine_id != machine.machine_id:
                continue  # its name is taken: it stays outside with what it has
            agent = machine.agent
            assert agent is not None
            idle = not agent.lifecycle.known() and not agent.lifecycle.unacknowledged
            _demand(idle, f"{agent.instance_id} still knows {agent.lifecycle.known()}")
            _demand(not machine.spool, f"{machine.machine_id} still keeps {machine.spool}")
            _demand(not machine.processes, f"{machine.machine_id} still runs tasks")
        _demand(not controller.cluster.reservations, "reservations are left over")
        _demand(not world.disk.reservations, "reservations of memory never expire")
        _demand(int(controller.cluster.ledger.reserved_bytes.sum()) == 0, "bytes are left reserved")
        for task in world.disk.tasks.values():
            if task.state is TaskState.CANCELLED:
                wanted = task.cancelled or task.reason_code == "DEPENDENCY_NEVER_MET"
                _demand(wanted, f"task {task.id} is CANCELLED, nobody asked for it")


def _demand(condition: bool, message: str) -> None:
    if not condition:
        raise LawBroken(message)

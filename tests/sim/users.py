"""The users of a simulated world: they submit, repeat what was not answered, cancel, control."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration
from mass.v1 import task_pb2, types_pb2
from sim.controllers import LIMITS, Answer
from sim.processes import BRIEF
from sim.timeline import SECOND_NS

from controller import requests
from controller.core.arrays import array_indexes
from controller.core.errors import MassError
from controller.core.events import TasksCancelled, TasksControlled, TasksSubmitted
from controller.core.limits import MIB
from controller.core.model import TaskAction, TaskSpec, TaskState

if TYPE_CHECKING:
    from sim.world import World

TASKS_MAX = 60  # of one world; more would only wait
KINDS = (
    types_pb2.DEPENDENCY_KIND_OK,
    types_pb2.DEPENDENCY_KIND_ANY,
    types_pb2.DEPENDENCY_KIND_ANY,
    types_pb2.DEPENDENCY_KIND_FAIL,
)


class Users:
    """Everybody who asks something of the controller."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._requests = 0
        self._unanswered: dict[str, bytes] = {}
        self._answered: dict[str, bytes] = {}

    @property
    def waiting(self) -> bool:
        """Say whether a submit is not answered yet."""
        return bool(self._unanswered)

    def submit(self) -> None:
        """Submit a few tasks, perhaps an old request once more."""
        chance = self._world.chance
        if self._answered and chance.random() < 0.15:
            request_id = chance.choice(list(self._answered))
            self._call(request_id, self._answered[request_id])
            return
        if self._requests * 2 >= TASKS_MAX:
            return
        self._requests += 1
        request_id = f"request-{self._requests}"
        specs = [self._spec(f"key-{place}") for place in range(chance.randint(1, 3))]
        for place, spec in enumerate(specs):
            self._wait_for_others(spec, place)
        request = task_pb2.SubmitTasksRequest(request_id=request_id, user="user", tasks=specs)
        self._unanswered[request_id] = request.SerializeToString()
        self._call(request_id, self._unanswered[request_id])

    def cancel(self) -> None:
        """Cancel some of the tasks that were accepted."""
        controller, chance = self._world.controller, self._world.chance
        known = self._world.laws.accepted_ids
        if controller is None or not known:
            return
        ids = chance.sample(known, min(len(known), chance.randint(1, 3)))
        still_open = tuple(task_id for task_id in ids if task_id in controller.cluster.tasks)
        grace_ns = chance.choice((0, SECOND_NS, LIMITS.cancel_grace_ns))
        now_ns = self._world.timeline.now_ns()
        self._world.say(f"a user cancels {still_open}")
        answer = Answer(self._world, lambda _: self._world.laws.cancel_answered(still_open), _gone)
        controller.engine.take(TasksCancelled(now_ns, still_open, grace_ns), answer)

    def control(self) -> None:
        """Hold, release, pause, resume or reorder some of the tasks that were accepted."""
        controller, chance = self._world.controller, self._world.chance
        known = self._world.laws.accepted_ids
        if controller is None or not known:
            return
        ids = tuple(chance.sample(known, min(len(known), chance.randint(1, 10))))
        self._control(ids, chance.choice(list(TaskAction)), chance.choice((0, 1, 2)))

    def let_go(self) -> None:
        """Release and resume every task."""
        for action, state in (
            (TaskAction.RELEASE, TaskState.HELD),
            (TaskAction.RESUME, TaskState.PAUSED),
        ):
            tasks = self._world.disk.tasks.values()
            if ids := tuple(task.id for task in tasks if task.state is state):
                self._control(ids, action)

    def _control(self, ids: tuple[int, ...], action: TaskAction, priority: int = 0) -> None:
        controller = self._world.controller
        assert controller is not None
        now_ns = self._world.timeline.now_ns()
        self._world.say(f"a user wants to {action.value} {ids}")
        answer = Answer(
            self._world,
            lambda refused: self._world.laws.control_answered(ids, action, refused),
            _gone,
        )
        controller.engine.take(TasksControlled(now_ns, ids, action, priority), answer)

    def _wait_for_others(self, spec: types_pb2.TaskSpec, place: int) -> None:
        """Let a task wait for earlier ones, of its own call or of an answered one."""
        chance, laws = self._world.chance, self._world.laws
        if place and chance.random() < 0.2:
            spec.after.add(key=f"key-{place - 1}", kind=chance.choice(KINDS))
        if laws.accepted and chance.random() < 0.1:
            ids = laws.accepted[chance.choice(list(laws.accepted))]
            spec.after.add(task_id=str(chance.choice(ids)), kind=chance.choice(KINDS))

    def _outcomes(
        self, specs: tuple[TaskSpec, ...]
    ) -> tuple[dict[int, frozenset[TaskState]], frozenset[int]]:
        """Return how those have ended that the specifications name, and which are open still, as
        the service reads it: of what is wholly open there is no outcome.
        """
        named = {wanted.task_id for spec in specs for wanted in spec.after if wanted.task_id > 0}
        outcomes: dict[int, set[TaskState]] = {}
        unfinished: set[int] = set()
        for task in self._world.disk.tasks.values():
            for thing_id in named & {task.id, task.array_id}:
                if task.ended:
                    outcomes.setdefault(thing_id, set()).add(task.state)
                else:
                    unfinished.add(thing_id)
        found = {thing_id: frozenset(states) for thing_id, states in sorted(outcomes.items())}
        return found, frozenset(unfinished)

    def _spec(self, key: str) -> types_pb2.TaskSpec:
        chance = self._world.chance
        category = chance.choice(("", "train", "align", *BRIEF))
        spec = types_pb2.TaskSpec(
            command=[category or "work"],
            # 0 declares nothing: it is sized by what is learned of its category.
            memory_request_bytes=chance.choice((0, 64, 256, 1_024, 2_048)) * MIB,
            category=category,
            cpus=chance.choice((0.1, 1.0, 2.0)),
            priority=chance.choice((0, 0, 1)),
            retries=chance.choice((0, 0, 1, 3)),
            no_requeue=chance.random() < 0.1,
            hold=chance.random() < 0.05,
            key=key,
        )
        if chance.random() < 0.1:
            spec.array.indexes = f"1-{chance.randint(2, 5)}"
            spec.array.running_max = chance.choice((0, 1, 2))
        if chance.random() < 0.1:
            spec.memory_limit_bytes = 2_048 * MIB
        if spec.memory_request_bytes and chance.random() < 0.1:
            spec.memory_exact = True
        if chance.random() < 0.2:
            seconds = chance.choice((1, 10))
            spec.time_limit.CopyFrom(Duration(seconds=seconds))
        return spec

    def _call(self, request_id: str, data: bytes) -> None:
        """Call; what stays without an answer is called again."""
        world, chance = self._world, self._world.chance
        again_ns = chance.randint(SECOND_NS, 10 * SECOND_NS)
        if request_id in self._unanswered:
            world.timeline.after(again_ns, lambda: self._call_again(request_id))
        controller = world.controller
        if controller is None or world.happens(world.rates.call_lost):
            return
        request = task_pb2.SubmitTasksRequest.FromString(data)
        _, user, specs = requests.submission(request, LIMITS)
        world.say(f"a user submits {request_id}, {len(specs)} tasks")
        answer = Answer(world, lambda ids: self._given(request_id, ids), _gone)
        event = TasksSubmitted(
            world.timeline.now_ns(), request_id, user, specs, *self._outcomes(specs)
        )
        controller.engine.take(event, answer)

    def _call_again(self, request_id: str) -> None:
        data = self._unanswered.get(request_id)
        if data is not None:
            self._call(request_id, data)

    def _given(self, request_id: str, ids: object) -> None:
        assert isinstance(ids, tuple)
        lost = self._world.happens(self._world.rates.call_lost)
        request = task_pb2.SubmitTasksRequest.FromString(
            self._unanswered.get(request_id) or self._answered[request_id]
        )
        task_ids: list[int] = []
        for spec, first in zip(request.tasks, ids, strict=True):
            count = len(array_indexes(spec.array.indexes, 10)) if spec.HasField("array") else 0
            task_ids += range(first + 1, first + count + 1) if count else [first]
        self._world.laws.submit_answered(request_id, ids, task_ids)
        if not lost and request_id in self._unanswered:
            self._answered[request_id] = self._unanswered.pop(request_id)


def _gone(error: MassError) -> None:
    """Take a refusal; a submit is called again by itself."""

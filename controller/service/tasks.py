"""TaskService: what people and programs ask about tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from mass.v1 import task_pb2, task_pb2_grpc, types_pb2

from controller import requests, views
from controller.core import explain
from controller.core.errors import InvalidRequest, NotFound, OutcomeUnknown
from controller.core.events import TasksCancelled, TasksControlled, TasksSubmitted
from controller.core.model import Task, TaskState
from controller.engine import Engine
from controller.service.output import read_log
from controller.service.status import answers, streams
from controller.store.base import TaskFilter

# A commit lies between an end and its look-up; each try waits for at least one turn.
OUTCOME_LOOKUPS_MAX = 20
OUTCOME_PAUSE_S = 0.05

PAGE_BYTES_MAX = 2 << 20  # clients take messages of 4 MiB without being told otherwise


class TaskService(task_pb2_grpc.TaskServiceServicer):
    """Serves tasks. Open tasks are read from the cluster, ended ones from the store."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._cluster = engine.cluster

    @answers
    async def SubmitTasks(  # noqa: N802
        self, request: task_pb2.SubmitTasksRequest, context: Any
    ) -> task_pb2.SubmitTasksResponse:
        """Accept all tasks of the request, or none."""
        request_id, user, specs = requests.submission(request, self._cluster.limits)
        named = {w.task_id for spec in specs for w in spec.after if w.task_id > 0}
        for attempt in range(OUTCOME_LOOKUPS_MAX):
            seen = await self._outcomes(named)
            event = TasksSubmitted(self._engine.now_ns(), request_id, user, specs, *seen)
            try:
                ids = await self._engine.ask(event)
                break
            except OutcomeUnknown:
                # It has ended since the look-up, and too many others with it.
                if attempt == OUTCOME_LOOKUPS_MAX - 1:
                    raise
                await asyncio.sleep(OUTCOME_PAUSE_S)
        assert isinstance(ids, tuple)
        return task_pb2.SubmitTasksResponse(ids=[str(task_id) for task_id in ids])

    async def _outcomes(
        self, named: set[int]
    ) -> tuple[dict[int, frozenset[TaskState]], frozenset[int], int]:
        """Return how the tasks and arrays that others wait for have ended, as far as they have,
        which of them had not, or not wholly, and how many ends were counted by then.

        Raises:
            NotFound: there is no such task, or no trace of it is left.
        """
        if not named:
            return {}, frozenset(), self._cluster.ends.count
        await self._engine.settled()  # of what is not open now, the store has every end
        ends_seen = self._cluster.ends.count
        unfinished = frozenset(filter(self._cluster.is_open, named))
        found = await self._engine.store.ended_states(named)
        for thing_id, states in list(found.items()):
            if states:
                continue
            del found[thing_id]
            if not self._cluster.is_open(thing_id):
                await self._expand([str(thing_id)])
        return found, unfinished, ends_seen

    @answers
    async def GetTask(  # noqa: N802
        self, request: task_pb2.GetTaskRequest, context: Any
    ) -> task_pb2.GetTaskResponse:
        """Return one task."""
        task = await self._find(request.id)
        return task_pb2.GetTaskResponse(task=self._view(task))

    @answers
    async def ListTasks(  # noqa: N802
        self, request: task_pb2.ListTasksRequest, context: Any
    ) -> task_pb2.ListTasksResponse:
        """Return a page of tasks, newest first; the token is the id to go on below.

        A page is shorter than asked for where its tasks are large.
        """
        size = requests.page_size(request.page_size)
        before = requests.page_before(request.page_token)
        wanted = TaskFilter(
            states=requests.states(list(request.states)),
            name=request.name,
            user=request.user,
            since_ns=requests.since_ns(request),
            array_id=requests.task_id(request.array_id) if request.array_id else 0,
        )
        found = await self._engine.store.tasks(before_id=before, limit=size, wanted=wanted)
        await self._engine.settled()
        response = task_pb2.ListTasksResponse()
        size_bytes = 0
        for task in found:
            view = self._view(self._cluster.tasks.get(task.id, task))
            size_bytes += view.ByteSize()
            if response.tasks and size_bytes > PAGE_BYTES_MAX:
                break
            response.tasks.append(view)
        if len(found) == size or len(response.tasks) < len(found):
            response.next_page_token = str(found[len(response.tasks) - 1].id)
        return response

    @answers
    async def CancelTasks(  # noqa: N802
        self, request: task_pb2.CancelTasksRequest, context: Any
    ) -> task_pb2.CancelTasksResponse:
        """End tasks; one unknown id refuses the whole call."""
        limits = self._cluster.limits
        ids = await self._expand(request.ids)
        grace_ns = limits.cancel_grace_ns
        if request.HasField("grace"):
            grace_ns = request.grace.ToNanoseconds()
            if not 0 <= grace_ns <= limits.cancel_grace_max_ns:
                raise InvalidRequest(
                    f"grace is {grace_ns / 1e9:g} s; it must be 0 to"
                    f" {limits.cancel_grace_max_ns / 1e9:g} s"
                )
        open_ids = tuple(task_id for task_id in ids if task_id in self._cluster.tasks)
        await self._engine.ask(TasksCancelled(self._engine.now_ns(), open_ids, grace_ns))
        return task_pb2.CancelTasksResponse(tasks=[self._view(t) for t in await self._all(ids)])

    @streams
    async def WatchTasks(  # noqa: N802
        self, request: task_pb2.WatchTasksRequest, context: Any
    ) -> AsyncIterator[task_pb2.WatchTasksResponse]:
        """Send each task now and at each change until all have ended."""
        ids = await self._expand(request.ids)
        watch = self._engine.watches.open(ids)
        try:
            running = set(ids)
            for task in await self._all(ids):
                if task.ended:
                    running.discard(task.id)
                yield task_pb2.WatchTasksResponse(task=self._view(task))
            while running:
                for task in await watch.next():
                    if task.ended:
                        running.discard(task.id)
                    yield task_pb2.WatchTasksResponse(task=self._view(task))
        finally:
            self._engine.watches.close(watch)

    @streams
    async def ReadTaskLog(  # noqa: N802
        self, request: task_pb2.ReadTaskLogRequest, context: Any
    ) -> AsyncIterator[task_pb2.ReadTaskLogResponse]:
        """Send a task's output."""
        task = await self._find(request.id)
        async for part in read_log(self._engine, request, task):
            yield part

    @answers
    async def ControlTasks(  # noqa: N802
        self, request: task_pb2.ControlTasksRequest, context: Any
    ) -> task_pb2.ControlTasksResponse:
        """Hold, release, pause or resume tasks, or change their priority."""
        action = requests.action(request, self._cluster.limits)
        ids = await self._expand(request.ids)
        event = TasksControlled(self._engine.now_ns(), tuple(ids), action, request.priority)
        refused = await self._engine.ask(event)
        assert isinstance(refused, tuple)
        tasks = await self._all(ids)
        return task_pb2.ControlTasksResponse(
            tasks=[self._view(task) for task in tasks],
            # The core has forgotten what it calls an ended task by: 12_3 for an element.
            refused=[
                f"task {task.label} has ended" if why and task.ended else why
                for task, why in zip(tasks, refused, strict=True)
            ],
        )

    @answers
    async def PlanTask(  # noqa: N802
        self, request: task_pb2.PlanTaskRequest, context: Any
    ) -> task_pb2.PlanTaskResponse:
        """Say where a task would go now; nothing is queued."""
        task, first = requests.planned(request.task)
        spec = requests.spec(task, self._cluster.limits)
        plan = explain.plan(self._cluster, self._engine.scheduler.displayed, spec)
        return task_pb2.PlanTaskResponse(
            node_id=plan.node_id,
            reason_code=plan.code,
            reason=plan.reason + first,
            refusals=[views.refusal_view(refusal) for refusal in plan.refusals],
        )

    @answers
    async def ExplainTask(  # noqa: N802
        self, request: task_pb2.ExplainTaskRequest, context: Any
    ) -> task_pb2.ExplainTaskResponse:
        """Say why a task is where it is."""
        task = await self._find(request.id)
        results = self._engine.scheduler.displayed
        return task_pb2.ExplainTaskResponse(
            task=self._view(task),
            sentences=explain.sentences(self._cluster, results, task, self._engine.now_ns()),
            refusals=[
                views.refusal_view(refusal)
                for refusal in explain.node_refusals(self._cluster, results, task)
            ],
        )

    def _view(self, task: Task) -> types_pb2.Task:
        return views.task_view(self._cluster, self._engine.scheduler.displayed, task)

    async def _find(self, text: str) -> Task:
        """Return the task with this id, 12 or 12_3."""
        await self._engine.settled()
        place = requests.element(text)
        if place is not None:
            ids = await self._engine.store.array_task_ids(*place)
            task_id = ids[0] if ids else 0
        else:
            task_id = requests.task_id(text)
        task = self._cluster.tasks.get(task_id) or await self._engine.store.task(task_id)
        if task is None:
            if place is None and await self._engine.store.array_task_ids(task_id):
                raise InvalidRequest(f"{text} is an array; name one of its elements: {text}_INDEX")
            raise NotFound(f"no task has the id {text}", task=text)
        return task

    async def _expand(self, texts: Sequence[str]) -> list[int]:
        """Return the numbers of task ids, each once, in their order; an array is its elements.

        Raises:
            InvalidRequest: there are none or too many, or one is no id.
            NotFound: there is no such task.
        """
        requests.check_id_count(len(texts), self._cluster.limits)
        await self._engine.settled()
        places = {text: requests.element(text) for text in texts}
        numbers = [requests.task_id(text) for text, place in places.items() if place is None]
        unknown = [number for number in numbers if number not in self._cluster.tasks]
        stored = await self._engine.store.task_ids_known(unknown) if unknown else set()
        ids: dict[int, None] = {}
        for text, place in places.items():
            if place is None and ((number := int(text)) in self._cluster.tasks or number in stored):
                ids[number] = None
                continue
            of_array = place or (int(text), None)
            found = await self._engine.store.array_task_ids(*of_array)
            if not found:
                raise NotFound(f"no task has the id {text}", task=text)
            ids.update(dict.fromkeys(found))
        return list(ids)

    async def _all(self, ids: list[int]) -> list[Task]:
        """Return known tasks in the order of their ids, as they are at one moment."""
        await self._engine.settled()
        ended: dict[int, Task] = {}
        # Another may end while the store is being read.
        while missing := [i for i in ids if i not in self._cluster.tasks and i not in ended]:
            found = await self._engine.store.tasks_by_id(missing)
            if not found:
                raise NotFound(f"no task has the id {missing[0]}", task=missing[0])
            ended |= found
            await self._engine.settled()
        return [self._cluster.tasks.get(task_id) or ended[task_id] for task_id in ids]

"""TaskService: what people and programs ask about tasks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from mass.v1 import task_pb2, task_pb2_grpc, types_pb2

from controller import requests, views
from controller.core import explain
from controller.core.errors import InvalidRequest, NotFound
from controller.core.events import TasksCancelled, TasksSubmitted
from controller.core.model import Task
from controller.engine import Engine
from controller.service.output import read_log
from controller.service.status import answers, streams


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
        event = TasksSubmitted(self._engine.now_ns(), request_id, user, specs)
        ids = await self._engine.ask(event)
        assert isinstance(ids, tuple)
        return task_pb2.SubmitTasksResponse(ids=[str(task_id) for task_id in ids])

    @answers
    async def GetTask(  # noqa: N802
        self, request: task_pb2.GetTaskRequest, context: Any
    ) -> task_pb2.GetTaskResponse:
        """Return one task."""
        task = await self._find(requests.task_id(request.id))
        return task_pb2.GetTaskResponse(task=self._view(task))

    @answers
    async def ListTasks(  # noqa: N802
        self, request: task_pb2.ListTasksRequest, context: Any
    ) -> task_pb2.ListTasksResponse:
        """Return a page of tasks, newest first; the token is the id to go on below."""
        size = requests.page_size(request.page_size)
        before = requests.page_before(request.page_token)
        states = requests.states(list(request.states))
        found = await self._engine.store.tasks(before_id=before, limit=size, states=states)
        await self._engine.settled()
        tasks = [self._cluster.tasks.get(task.id, task) for task in found]
        return task_pb2.ListTasksResponse(
            tasks=[self._view(task) for task in tasks],
            next_page_token=str(found[-1].id) if len(found) == size else "",
        )

    @answers
    async def CancelTasks(  # noqa: N802
        self, request: task_pb2.CancelTasksRequest, context: Any
    ) -> task_pb2.CancelTasksResponse:
        """End tasks; one unknown id refuses the whole call."""
        limits = self._cluster.limits
        ids = requests.task_ids(list(request.ids), limits)
        await self._must_know(ids)
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
        ids = requests.task_ids(list(request.ids), self._cluster.limits)
        await self._must_know(ids)
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
        task = await self._find(requests.task_id(request.id))
        async for part in read_log(self._engine, request, task):
            yield part

    @answers
    async def ExplainTask(  # noqa: N802
        self, request: task_pb2.ExplainTaskRequest, context: Any
    ) -> task_pb2.ExplainTaskResponse:
        """Say why a task is where it is."""
        task = await self._find(requests.task_id(request.id))
        results = self._engine.scheduler.displayed
        return task_pb2.ExplainTaskResponse(
            task=self._view(task),
            sentences=explain.sentences(self._cluster, results, task),
            refusals=[
                views.refusal_view(refusal)
                for refusal in explain.node_refusals(self._cluster, results, task)
            ],
        )

    def _view(self, task: Task) -> types_pb2.Task:
        return views.task_view(self._cluster, self._engine.scheduler.displayed, task)

    async def _find(self, task_id: int) -> Task:
        await self._engine.settled()
        task = self._cluster.tasks.get(task_id) or await self._engine.store.task(task_id)
        if task is None:
            raise NotFound(f"no task has the id {task_id}", task=task_id)
        return task

    async def _must_know(self, ids: list[int]) -> None:
        await self._engine.settled()
        missing = [task_id for task_id in ids if task_id not in self._cluster.tasks]
        if missing:
            known = await self._engine.store.task_ids_known(missing)
            for task_id in missing:
                if task_id not in known:
                    raise NotFound(f"no task has the id {task_id}", task=task_id)

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

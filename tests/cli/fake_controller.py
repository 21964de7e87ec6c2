"""A controller that lives in this process and answers from small lists."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.rpc import code_pb2, error_details_pb2, status_pb2
from mass.v1 import (
    alert_pb2,
    alert_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    memory_pb2,
    memory_pb2_grpc,
    node_pb2,
    node_pb2_grpc,
    rule_pb2,
    rule_pb2_grpc,
    task_pb2,
    task_pb2_grpc,
    types_pb2,
)

START_SECONDS = 1_700_000_000
GIB = 1 << 30


def task(task_id: str, state: str = "RUNNING", **fields: Any) -> types_pb2.Task:
    """Return a task as a controller would tell it."""
    spec = fields.pop("spec", None) or types_pb2.TaskSpec(
        command=["sleep", "60"], name="sleep", category="sleep", memory_request_bytes=GIB, cpus=1
    )
    made = types_pb2.Task(
        id=task_id,
        spec=spec,
        state=f"TASK_STATE_{state}",
        attempt=0 if state == "PENDING" else 1,
        **fields,
    )
    made.submitted_at.FromSeconds(START_SECONDS)
    if made.attempt:
        made.started_at.FromSeconds(START_SECONDS + 1)
    if state in {"SUCCEEDED", "FAILED", "OUT_OF_MEMORY", "TIMED_OUT", "CANCELLED", "LOST"}:
        made.ended_at.FromSeconds(START_SECONDS + 61)
    return made


def node(node_id: str, **fields: Any) -> types_pb2.Node:
    """Return a ready node of 8 GiB."""
    values: dict[str, Any] = {
        "state": types_pb2.NODE_STATE_READY,
        "scheduling": types_pb2.SCHEDULING_ENABLED,
        "pressure": types_pb2.PRESSURE_NONE,
        "memory_total_bytes": 8 * GIB,
        "memory_capacity_bytes": 7 * GIB,
        "memory_used_bytes": 3 * GIB,
        "memory_reserved_bytes": 2 * GIB,
        "memory_tasks_used_bytes": 1 * GIB,
        "memory_foreign_bytes": 2 * GIB,
        "memory_promise_bytes": 3 * GIB,
        "cpus": 2.0,
        "cpus_used": 1.0,
        "tasks_running": 1,
    }
    return types_pb2.Node(id=node_id, **{**values, **fields})


def alert(name: str, node_id: str, state: str = "FIRING") -> types_pb2.Alert:
    """Return an alert that began to hold at the start."""
    made = types_pb2.Alert(
        name=name,
        node_id=node_id,
        state=f"ALERT_STATE_{state}",
        labels={"severity": "warning"},
        annotations={"summary": f"{node_id} is at 91 %"},
        value=91.0,
    )
    made.active_at.FromSeconds(START_SECONDS)
    return made


def event(sequence: int, kind: str, text: str, **details: str) -> event_pb2.Event:
    """Return an event; each is a second after the one before it."""
    made = event_pb2.Event(
        sequence=sequence, kind=kind, subject=" ".join(text.split()[:2]), text=text, details=details
    )
    made.at.FromSeconds(START_SECONDS + sequence)
    return made


class FakeController(
    event_pb2_grpc.EventServiceServicer,
    task_pb2_grpc.TaskServiceServicer,
    node_pb2_grpc.NodeServiceServicer,
    alert_pb2_grpc.AlertServiceServicer,
    rule_pb2_grpc.RuleServiceServicer,
    memory_pb2_grpc.MemoryServiceServicer,
):
    """Holds what it answers with, and what it was asked."""

    def __init__(self) -> None:
        self.tasks: dict[str, types_pb2.Task] = {}
        self.nodes: dict[str, types_pb2.Node] = {}
        self.alerts: list[types_pb2.Alert] = []
        self.rules: list[rule_pb2.Rule] = []
        self.categories: dict[str, memory_pb2.Category] = {}
        self.pool = memory_pb2.Pool(capacity_bytes=64 << 20, used_bytes=1 << 20, tails_kept=True)
        self.refusals: list[task_pb2.NodeRefusal] = []
        # What happens to a task while it is watched: the states it goes through, in order.
        self.story: dict[str, list[types_pb2.Task]] = {}
        self.output: dict[tuple[str, int], bytes] = {}
        self.output_note = ""
        self.submits: list[task_pb2.SubmitTasksRequest] = []
        self.cancels: list[task_pb2.CancelTasksRequest] = []
        self.controls: list[task_pb2.ControlTasksRequest] = []
        self.refused: dict[str, str] = {}  # by task: why an action does not apply
        self.cordons: list[node_pb2.CordonNodeRequest] = []
        self.drains: list[node_pb2.DrainNodeRequest] = []
        self.log_requests: list[task_pb2.ReadTaskLogRequest] = []
        self.unavailable_next = 0
        self.refuse_next: tuple[grpc.StatusCode, str, str, dict[str, str]] | None = None
        self.abort_next: grpc.StatusCode | None = None
        self.watch_until_cancelled = False
        self.cancelled = threading.Event()
        self.goes_on_after_cancel = False
        self.ended = threading.Event()
        self.watching = threading.Event()
        self.events: list[event_pb2.Event] = []
        self.event_requests: list[event_pb2.WatchEventsRequest] = []
        # What the streams of events after the first one hold; each breaks off but the last.
        self.events_later: list[list[event_pb2.Event]] = []
        self.log_breaks = 0  # how many readings of an output break off in the middle
        self.page_size_max = 1_000

    def SubmitTasks(  # noqa: N802 - the names are the contract's
        self, request: task_pb2.SubmitTasksRequest, context: grpc.ServicerContext
    ) -> task_pb2.SubmitTasksResponse:
        self.submits.append(request)
        self._trouble(context)
        first = len(self.tasks) + 1
        ids = [str(first + index) for index in range(len(request.tasks))]
        for task_id, spec in zip(ids, request.tasks, strict=True):
            self.tasks.setdefault(task_id, task(task_id, "PENDING", spec=spec))
        return task_pb2.SubmitTasksResponse(ids=ids)

    def GetTask(  # noqa: N802
        self, request: task_pb2.GetTaskRequest, context: grpc.ServicerContext
    ) -> task_pb2.GetTaskResponse:
        self._trouble(context)
        return task_pb2.GetTaskResponse(task=self._task(request.id, context))

    def ListTasks(  # noqa: N802
        self, request: task_pb2.ListTasksRequest, context: grpc.ServicerContext
    ) -> task_pb2.ListTasksResponse:
        self._trouble(context)
        newest = sorted(self.tasks.values(), key=lambda task: int(task.id), reverse=True)
        chosen = [
            task
            for task in newest
            if (not request.states or task.state in request.states)
            and request.name in ("", task.spec.name)
            and task.submitted_at.ToNanoseconds() >= request.since.ToNanoseconds()
        ]
        first = int(request.page_token or 0)
        end = first + min(request.page_size or 100, self.page_size_max)
        token = str(end) if end < len(chosen) else ""
        return task_pb2.ListTasksResponse(tasks=chosen[first:end], next_page_token=token)

    def CancelTasks(  # noqa: N802
        self, request: task_pb2.CancelTasksRequest, context: grpc.ServicerContext
    ) -> task_pb2.CancelTasksResponse:
        self.cancels.append(request)
        for task_id in request.ids:
            self._task(task_id, context)
            self.tasks[task_id] = task(task_id, "CANCELLED")
        self.cancelled.set()
        return task_pb2.CancelTasksResponse(tasks=[self.tasks[one] for one in request.ids])

    def ControlTasks(  # noqa: N802
        self, request: task_pb2.ControlTasksRequest, context: grpc.ServicerContext
    ) -> task_pb2.ControlTasksResponse:
        self.controls.append(request)
        return task_pb2.ControlTasksResponse(
            tasks=[self._task(task_id, context) for task_id in request.ids],
            refused=[self.refused.get(task_id, "") for task_id in request.ids],
        )

    def WatchTasks(  # noqa: N802
        self, request: task_pb2.WatchTasksRequest, context: grpc.ServicerContext
    ) -> Iterator[task_pb2.WatchTasksResponse]:
        self._trouble(context)
        for task_id in request.ids:
            self._task(task_id, context)
        for task_id in request.ids:
            yield task_pb2.WatchTasksResponse(task=self.tasks[task_id])
            for step in self.story.get(task_id, []):
                self.tasks[task_id] = step
                yield task_pb2.WatchTasksResponse(task=step)
        if self.watch_until_cancelled:
            self.watching.set()
            self.cancelled.wait(10)
            if self.goes_on_after_cancel:
                self.ended.wait(10)
            yield task_pb2.WatchTasksResponse(task=self.tasks[request.ids[0]])

    def ReadTaskLog(  # noqa: N802
        self, request: task_pb2.ReadTaskLogRequest, context: grpc.ServicerContext
    ) -> Iterator[task_pb2.ReadTaskLogResponse]:
        self.log_requests.append(request)
        self._task(request.id, context)
        data = self.output.get((request.id, request.stream or 1), b"")
        data = data[-request.tail_bytes :] if request.tail_bytes else data
        if self.output_note:
            yield task_pb2.ReadTaskLogResponse(note=self.output_note)
        for start in range(0, len(data), 4):
            yield task_pb2.ReadTaskLogResponse(data=data[start : start + 4])
            if start == 4 and self.log_breaks > 0:
                self.log_breaks -= 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "going away")

    def ExplainTask(  # noqa: N802
        self, request: task_pb2.ExplainTaskRequest, context: grpc.ServicerContext
    ) -> task_pb2.ExplainTaskResponse:
        found = self._task(request.id, context)
        return task_pb2.ExplainTaskResponse(
            task=found, sentences=[f"task {found.id} waits"], refusals=self.refusals
        )

    def ListNodes(  # noqa: N802
        self, request: node_pb2.ListNodesRequest, context: grpc.ServicerContext
    ) -> node_pb2.ListNodesResponse:
        self._trouble(context)
        nodes = [self.nodes[name] for name in sorted(self.nodes)]
        first = int(request.page_token or 0)
        end = first + min(request.page_size, self.page_size_max)
        token = str(end) if end < len(nodes) else ""
        return node_pb2.ListNodesResponse(nodes=nodes[first:end], next_page_token=token)

    def GetNode(  # noqa: N802
        self, request: node_pb2.GetNodeRequest, context: grpc.ServicerContext
    ) -> node_pb2.GetNodeResponse:
        return node_pb2.GetNodeResponse(node=self._node(request.id, context))

    def CordonNode(  # noqa: N802
        self, request: node_pb2.CordonNodeRequest, context: grpc.ServicerContext
    ) -> node_pb2.CordonNodeResponse:
        self.cordons.append(request)
        found = self.nodes[request.id]
        found.scheduling = types_pb2.SCHEDULING_CORDONED
        found.scheduling_reason = request.reason
        return node_pb2.CordonNodeResponse(node=found)

    def DrainNode(  # noqa: N802
        self, request: node_pb2.DrainNodeRequest, context: grpc.ServicerContext
    ) -> node_pb2.DrainNodeResponse:
        self.drains.append(request)
        found = self._node(request.id, context)
        found.scheduling = types_pb2.SCHEDULING_DRAINING
        found.scheduling_reason = request.reason
        return node_pb2.DrainNodeResponse(node=found)

    def ForgetNode(  # noqa: N802
        self, request: node_pb2.ForgetNodeRequest, context: grpc.ServicerContext
    ) -> node_pb2.ForgetNodeResponse:
        self._trouble(context)
        self._node(request.id, context)
        del self.nodes[request.id]
        return node_pb2.ForgetNodeResponse()

    def UncordonNode(  # noqa: N802
        self, request: node_pb2.UncordonNodeRequest, context: grpc.ServicerContext
    ) -> node_pb2.UncordonNodeResponse:
        found = self.nodes[request.id]
        found.scheduling = types_pb2.SCHEDULING_ENABLED
        return node_pb2.UncordonNodeResponse(node=found)

    def ListAlerts(  # noqa: N802
        self, request: alert_pb2.ListAlertsRequest, context: grpc.ServicerContext
    ) -> alert_pb2.ListAlertsResponse:
        return alert_pb2.ListAlertsResponse(alerts=self.alerts)

    def ListRules(  # noqa: N802
        self, request: rule_pb2.ListRulesRequest, context: grpc.ServicerContext
    ) -> rule_pb2.ListRulesResponse:
        return rule_pb2.ListRulesResponse(rules=self.rules)

    def WatchEvents(  # noqa: N802
        self, request: event_pb2.WatchEventsRequest, context: grpc.ServicerContext
    ) -> Iterator[event_pb2.WatchEventsResponse]:
        self.event_requests.append(request)
        self._trouble(context)
        for one in self.events[-request.last :]:
            yield event_pb2.WatchEventsResponse(event=one)
        if self.events_later:
            self.events = self.events_later.pop(0)
            context.abort(grpc.StatusCode.UNAVAILABLE, "going away")

    def GetPool(  # noqa: N802
        self, request: memory_pb2.GetPoolRequest, context: grpc.ServicerContext
    ) -> memory_pb2.GetPoolResponse:
        self._trouble(context)
        return memory_pb2.GetPoolResponse(pool=self.pool)

    def ListCategories(  # noqa: N802
        self, request: memory_pb2.ListCategoriesRequest, context: grpc.ServicerContext
    ) -> memory_pb2.ListCategoriesResponse:
        found = [self.categories[name] for name in sorted(self.categories)]
        return memory_pb2.ListCategoriesResponse(categories=found)

    def GetCategory(  # noqa: N802
        self, request: memory_pb2.GetCategoryRequest, context: grpc.ServicerContext
    ) -> memory_pb2.GetCategoryResponse:
        if request.name not in self.categories:
            refuse(context, grpc.StatusCode.NOT_FOUND, f"no category '{request.name}'", "NOT_FOUND")
        return memory_pb2.GetCategoryResponse(category=self.categories[request.name])

    def _task(self, task_id: str, context: grpc.ServicerContext) -> types_pb2.Task:
        if task_id not in self.tasks:
            refuse(
                context, grpc.StatusCode.NOT_FOUND, f"no task {task_id}", "NOT_FOUND", task=task_id
            )
        return self.tasks[task_id]

    def _node(self, node_id: str, context: grpc.ServicerContext) -> types_pb2.Node:
        if node_id not in self.nodes:
            refuse(context, grpc.StatusCode.NOT_FOUND, f"no node '{node_id}'", "NOT_FOUND")
        return self.nodes[node_id]

    def _trouble(self, context: grpc.ServicerContext) -> None:
        if self.unavailable_next > 0:
            self.unavailable_next -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "going away")
        if self.abort_next is not None:
            context.abort(self.abort_next, "it says no")
        if self.refuse_next is not None:
            code, message, reason, details = self.refuse_next
            self.refuse_next = None
            refuse(context, code, message, reason, **details)


def refuse(
    context: grpc.ServicerContext,
    code: grpc.StatusCode,
    message: str,
    reason: str,
    **details: str,
) -> NoReturn:
    """End a call the way the controller does: a status with an ErrorInfo."""
    packed = Packed()
    packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="mass", metadata=details))
    status = status_pb2.Status(
        code=code_pb2.Code.Value(code.name), message=message, details=[packed]
    )
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, message)
    raise AssertionError("abort does not return")


class Served:
    """A fake controller behind a port of the loopback."""

    def __init__(self, fake: FakeController) -> None:
        self.fake = fake
        self._server = grpc.server(ThreadPoolExecutor(max_workers=8))
        # The generated functions have no types.
        registrations: list[Any] = [
            task_pb2_grpc.add_TaskServiceServicer_to_server,
            node_pb2_grpc.add_NodeServiceServicer_to_server,
            alert_pb2_grpc.add_AlertServiceServicer_to_server,
            rule_pb2_grpc.add_RuleServiceServicer_to_server,
            event_pb2_grpc.add_EventServiceServicer_to_server,
            memory_pb2_grpc.add_MemoryServiceServicer_to_server,
        ]
        for register in registrations:
            register(fake, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def stop(self) -> None:
        """End it and wait for its calls."""
        self._server.stop(grace=0).wait()

"""Owns the channel to the controller: opening it, patience, and what its answers mean.

The rule: no other module of the CLI imports grpc. Every call here is safe to repeat (a submit has
a request id), so a controller that does not answer is asked again, for at most `PATIENCE_SECONDS`.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# The C core writes connection attempts to stderr, where people expect only our own sentences.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
from mass.units import told_apart
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

from controller.cli.address import Address
from controller.cli.exits import ExitCode, Refused, Unreachable
from controller.core.errors import InvalidRequest

PATIENCE_SECONDS = 10.0
CALL_SECONDS = 30.0
DELAY_FIRST_SECONDS = 0.1
DELAY_MAX_SECONDS = 1.0
PAGE_SIZE_MAX = 1_000
MESSAGE_RECEIVED_BYTES_MAX = 64 << 20
MESSAGE_SENT_BYTES_MAX = 16 << 20  # more is not accepted by the controller

CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", MESSAGE_RECEIVED_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_SENT_BYTES_MAX),
)

EXIT_CODES = {
    grpc.StatusCode.NOT_FOUND: ExitCode.NOT_FOUND,
    grpc.StatusCode.INVALID_ARGUMENT: ExitCode.USAGE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ExitCode.TRY_LATER,
    grpc.StatusCode.UNAVAILABLE: ExitCode.UNREACHABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: ExitCode.UNREACHABLE,
}


class Patience:
    """Decides after each failed attempt whether to wait and try again, or to give up."""

    def __init__(
        self,
        address: Address,
        note: Callable[[str], None],
        seconds: float,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._address = address
        self._note = note
        self._seconds = seconds
        self._clock = clock
        self._sleep = sleep
        self.reset()

    def reset(self) -> None:
        """Forget earlier failures: the controller has answered."""
        self._give_up_at: float | None = None
        self._delay = DELAY_FIRST_SECONDS

    def wait(self, error: grpc.RpcError) -> None:
        """Return when it is time to try again.

        Raises:
            Refused: the controller has answered, with a refusal.
            Unreachable: the controller has not answered for the whole patience.
        """
        refusal = refusal_of(error)
        if refusal is not None:
            raise refusal from error
        now = self._clock()
        if self._give_up_at is None:
            self._give_up_at = now + self._seconds
            if self._seconds > 0:
                self._note(
                    f"controller {self._address} does not answer; trying for {self._seconds:.0f} s"
                )
        if now + self._delay > self._give_up_at:
            raise Unreachable(
                f"controller {self._address} does not answer; start one with 'mass controller', "
                "or with 'mass dev' together with an agent, or name another with --controller",
                controller=self._address,
            ) from error
        self._sleep(self._delay)
        self._delay = min(self._delay * 2, DELAY_MAX_SECONDS)


class Client:
    """The controller's services as plain methods. Values are the messages of mass.v1.

    Every method raises Refused for a refusal and Unreachable when the controller does not answer
    for `patience_seconds` (10 s); `note` is told once when the waiting begins.
    """

    def __init__(
        self,
        address: Address,
        note: Callable[[str], None],
        patience_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._address = address
        self._note = note
        self._patience_seconds = PATIENCE_SECONDS if patience_seconds is None else patience_seconds
        self._clock = clock
        self._sleep = sleep
        self._channel = grpc.insecure_channel(address.target, options=CHANNEL_OPTIONS)
        self._tasks = task_pb2_grpc.TaskServiceStub(self._channel)
        self._nodes = node_pb2_grpc.NodeServiceStub(self._channel)
        self._alerts = alert_pb2_grpc.AlertServiceStub(self._channel)
        self._rules = rule_pb2_grpc.RuleServiceStub(self._channel)
        self._memory = memory_pb2_grpc.MemoryServiceStub(self._channel)
        self._events = event_pb2_grpc.EventServiceStub(self._channel)

    def close(self) -> None:
        """Close the channel; calls under way end."""
        self._channel.close()

    def submit(self, specs: Sequence[types_pb2.TaskSpec], user: str) -> list[str]:
        """Submit tasks, all or none, and return their ids in the same order.

        Raises:
            InvalidRequest: together they are too large for one call.
        """
        request = task_pb2.SubmitTasksRequest(request_id=uuid.uuid4().hex, tasks=specs, user=user)
        if request.ByteSize() > MESSAGE_SENT_BYTES_MAX:
            size, most = told_apart(request.ByteSize(), MESSAGE_SENT_BYTES_MAX)
            raise InvalidRequest(
                f"{len(specs):,} tasks have {size}; one call carries {most}, so split them"
            )
        return list(self._call(self._tasks.SubmitTasks, request).ids)

    def task(self, task_id: str) -> types_pb2.Task:
        """Return one task."""
        answer: task_pb2.GetTaskResponse = self._call(
            self._tasks.GetTask, task_pb2.GetTaskRequest(id=task_id)
        )
        return answer.task

    def plan(self, spec: types_pb2.TaskSpec) -> task_pb2.PlanTaskResponse:
        """Return where a task would go now; nothing is submitted."""
        request = task_pb2.PlanTaskRequest(task=spec)
        answer: task_pb2.PlanTaskResponse = self._call(self._tasks.PlanTask, request)
        return answer

    def control(
        self, task_ids: Sequence[str], action: int, priority: int = 0
    ) -> tuple[list[types_pb2.Task], list[str]]:
        """Hold, release, pause or resume tasks; return them and why it does not apply to each."""
        request = task_pb2.ControlTasksRequest(ids=task_ids, priority=priority)
        request.action = action  # type: ignore[assignment]
        answer = self._call(self._tasks.ControlTasks, request)
        return list(answer.tasks), list(answer.refused)

    def tasks(
        self,
        count_max: int,
        states: Sequence[types_pb2.TaskState | str] = (),
        *,
        name: str = "",
        user: str = "",
        array_id: str = "",
        since_ns: int = 0,
    ) -> tuple[list[types_pb2.Task], bool]:
        """Return at most count_max tasks, newest first, and whether there are more."""
        found: list[types_pb2.Task] = []
        token = ""
        while len(found) < count_max:
            request = task_pb2.ListTasksRequest(
                page_size=min(PAGE_SIZE_MAX, count_max - len(found)),
                page_token=token,
                states=states,
                name=name,
                user=user,
                array_id=array_id,
            )
            if since_ns:
                request.since.FromNanoseconds(since_ns)
            page = self._call(self._tasks.ListTasks, request)
            found.extend(page.tasks)
            token = page.next_page_token
            if not token:
                break
        return found, bool(token)

    def cancel(self, task_ids: Sequence[str], grace_ns: int | None) -> list[types_pb2.Task]:
        """End tasks and return them as they are now; None leaves the grace to the controller."""
        request = task_pb2.CancelTasksRequest(ids=task_ids)
        if grace_ns is not None:
            request.grace.FromNanoseconds(grace_ns)
        return list(self._call(self._tasks.CancelTasks, request).tasks)

    def watch(self, task_ids: Sequence[str]) -> Iterator[types_pb2.Task]:
        """Yield each task as it is now and on each change, until all have ended.

        A controller that restarts meanwhile is waited for; a task may then be yielded again.
        """
        request = task_pb2.WatchTasksRequest(ids=task_ids)
        patience = self._patience()
        while True:
            stream = self._tasks.WatchTasks(request)
            try:
                for response in stream:
                    patience.reset()
                    yield response.task
                return
            except grpc.RpcError as error:
                patience.wait(error)
            finally:
                stream.cancel()

    def read_log(self, request: task_pb2.ReadTaskLogRequest) -> Iterator[tuple[bytes, str]]:
        """Yield parts of an output, each with a note for people that is mostly empty.

        After a restart of the controller the output is read again and what was yielded before is
        left out. With tail_bytes that place is unknown, so the failure is then raised.
        """
        patience = self._patience()
        yielded_bytes = 0
        while True:
            skip_bytes = yielded_bytes
            stream = self._tasks.ReadTaskLog(request)
            try:
                for part in stream:
                    patience.reset()
                    data = part.data[skip_bytes:]
                    skip_bytes = max(0, skip_bytes - len(part.data))
                    yielded_bytes += len(data)
                    if data or part.note:
                        yield data, part.note
                return
            except grpc.RpcError as error:
                if request.tail_bytes and yielded_bytes:
                    raise refusal_of(error) or Unreachable(
                        "the controller stopped answering in the middle of the output"
                    ) from error
                patience.wait(error)
            finally:
                stream.cancel()

    def explain(self, task_id: str) -> task_pb2.ExplainTaskResponse:
        """Return why a task is where it is."""
        answer: task_pb2.ExplainTaskResponse = self._call(
            self._tasks.ExplainTask, task_pb2.ExplainTaskRequest(id=task_id)
        )
        return answer

    def nodes(self) -> list[types_pb2.Node]:
        """Return all nodes by id."""
        request = node_pb2.ListNodesRequest(page_size=PAGE_SIZE_MAX)
        return self._all_pages(self._nodes.ListNodes, request, "nodes")

    def node(self, node_id: str) -> types_pb2.Node:
        """Return one node."""
        answer: node_pb2.GetNodeResponse = self._call(
            self._nodes.GetNode, node_pb2.GetNodeRequest(id=node_id)
        )
        return answer.node

    def cordon(self, node_id: str, reason: str, user: str) -> types_pb2.Node:
        """Keep new tasks off a node and return it."""
        request = node_pb2.CordonNodeRequest(id=node_id, reason=reason, user=user)
        answer: node_pb2.CordonNodeResponse = self._call(self._nodes.CordonNode, request)
        return answer.node

    def uncordon(self, node_id: str, user: str) -> types_pb2.Node:
        """Let new tasks onto a node again and return it."""
        request = node_pb2.UncordonNodeRequest(id=node_id, user=user)
        answer: node_pb2.UncordonNodeResponse = self._call(self._nodes.UncordonNode, request)
        return answer.node

    def drain(
        self, node_id: str, reason: str, user: str, deadline_ns: int | None
    ) -> types_pb2.Node:
        """Keep new tasks off a node, wait for those it has, and return it."""
        request = node_pb2.DrainNodeRequest(id=node_id, reason=reason, user=user)
        if deadline_ns is not None:
            request.deadline.FromNanoseconds(deadline_ns)
        answer: node_pb2.DrainNodeResponse = self._call(self._nodes.DrainNode, request)
        return answer.node

    def forget_node(self, node_id: str) -> None:
        """Remove a node that is gone."""
        self._call(self._nodes.ForgetNode, node_pb2.ForgetNodeRequest(id=node_id))

    def reserve(
        self, memory_bytes: int, node_id: str, ttl_ns: int, purpose: str, user: str
    ) -> memory_pb2.Reservation:
        """Set memory of a node aside."""
        request = memory_pb2.CreateReservationRequest(
            request_id=uuid.uuid4().hex,
            memory_bytes=memory_bytes,
            node_id=node_id,
            purpose=purpose,
            user=user,
        )
        request.ttl.FromNanoseconds(ttl_ns)
        answer: memory_pb2.CreateReservationResponse = self._call(
            self._memory.CreateReservation, request
        )
        return answer.reservation

    def reservations(self) -> list[memory_pb2.Reservation]:
        """Return all reservations by id."""
        request = memory_pb2.ListReservationsRequest(page_size=PAGE_SIZE_MAX)
        return self._all_pages(self._memory.ListReservations, request, "reservations")

    def renew_reservation(self, reservation_id: str, ttl_ns: int) -> memory_pb2.Reservation:
        """Move the end of a reservation."""
        request = memory_pb2.RenewReservationRequest(id=reservation_id)
        request.ttl.FromNanoseconds(ttl_ns)
        answer: memory_pb2.RenewReservationResponse = self._call(
            self._memory.RenewReservation, request
        )
        return answer.reservation

    def release_reservation(self, reservation_id: str) -> None:
        """Give a reservation back."""
        request = memory_pb2.ReleaseReservationRequest(id=reservation_id)
        self._call(self._memory.ReleaseReservation, request)

    def categories(self) -> list[memory_pb2.Category]:
        """Return what was learned of each category, by name."""
        request = memory_pb2.ListCategoriesRequest(page_size=PAGE_SIZE_MAX)
        return self._all_pages(self._memory.ListCategories, request, "categories")

    def category(self, name: str) -> memory_pb2.Category:
        """Return what was learned of one category."""
        answer: memory_pb2.GetCategoryResponse = self._call(
            self._memory.GetCategory, memory_pb2.GetCategoryRequest(name=name)
        )
        return answer.category

    def alerts(self) -> list[types_pb2.Alert]:
        """Return active and lately resolved alerts, firing ones first."""
        request = alert_pb2.ListAlertsRequest(page_size=PAGE_SIZE_MAX)
        return self._all_pages(self._alerts.ListAlerts, request, "alerts")

    def rules(self) -> list[rule_pb2.Rule]:
        """Return the rules in force."""
        request = rule_pb2.ListRulesRequest(page_size=PAGE_SIZE_MAX)
        return self._all_pages(self._rules.ListRules, request, "rules")

    def pool(self) -> memory_pb2.Pool:
        """Return the state of the controller's pool."""
        answer: memory_pb2.GetPoolResponse = self._call(
            self._memory.GetPool, memory_pb2.GetPoolRequest()
        )
        return answer.pool

    def events(self, last: int = 0, follow: bool = False) -> Iterator[event_pb2.Event]:
        """Yield the last so many kept events (0: all), and with follow each new one, for ever.

        A controller that restarts meanwhile is waited for, and its events are yielded from its
        start on. What was yielded before is told by its time: a machine whose clock was set back
        during the restart loses the events up to the old time.
        """
        request = event_pb2.WatchEventsRequest(last=last, follow=follow)
        patience = self._patience()
        seen = (0, 0)
        while True:
            stream = self._events.WatchEvents(request)
            try:
                for response in stream:
                    patience.reset()
                    event = response.event
                    place = (event.at.ToNanoseconds(), event.sequence)
                    if place > seen:
                        seen = place
                        request.last = 0  # after a break everything new is wanted
                        yield event
                return
            except grpc.RpcError as error:
                patience.wait(error)
            finally:
                stream.cancel()

    def _patience(self) -> Patience:
        return Patience(self._address, self._note, self._patience_seconds, self._clock, self._sleep)

    # The generated services have no types, so a method and what it returns are Any.
    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        patience = self._patience()
        while True:
            try:
                return method(request, timeout=CALL_SECONDS)
            except grpc.RpcError as error:
                patience.wait(error)

    def _all_pages(self, method: Callable[..., Any], request: Any, field: str) -> list[Any]:
        found: list[Any] = []
        while True:
            page = self._call(method, request)
            found.extend(getattr(page, field))
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


def refusal_of(error: grpc.RpcError) -> Refused | None:
    """Return the controller's refusal in an RPC's error, or None when it has not answered.

    UNAVAILABLE without a reason comes from the channel or from a controller on its way out; with a
    reason it is the controller's own word, for example about a node that cannot be asked.
    """
    if not isinstance(error, grpc.Call):
        raise error
    code = error.code()
    reason, details = _error_info(error)
    if code is grpc.StatusCode.UNAVAILABLE and not reason:
        return None
    exit_code = EXIT_CODES.get(code, ExitCode.REFUSED)
    if reason and exit_code is ExitCode.UNREACHABLE:
        exit_code = ExitCode.TRY_LATER
    message = error.details() or f"the controller answered {code.name} without a message"
    return Refused(message, reason=reason or code.name, exit_code=exit_code, details=details)


def _error_info(error: grpc.Call) -> tuple[str, dict[str, str]]:
    packed = [
        value
        for key, value in error.trailing_metadata() or ()
        if key == "grpc-status-details-bin" and isinstance(value, bytes)
    ]
    if not packed:
        return "", {}
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2, status_pb2

    status = status_pb2.Status()
    info = error_details_pb2.ErrorInfo()
    try:
        status.ParseFromString(packed[0])
        for detail in status.details:
            if detail.Is(info.DESCRIPTOR):
                detail.Unpack(info)
                return info.reason, dict(info.metadata)
    except DecodeError:
        # A peer that packs something else still gets its code and its sentence shown.
        return "", {}
    return "", {}

"""Each method of the client as one body, for the blocking and the awaiting client alike.

The rule: every call here is safe to repeat (a submit has a request id), so a controller that does
not answer is asked again, for the client's patience; then Unreachable is raised.
"""

from __future__ import annotations

import getpass
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, TypeAlias, TypeVar

import grpc

from mass.effects import (
    MESSAGE_SENT_BYTES_MAX,
    Call,
    Flow,
    Item,
    ItemFlow,
    Next,
    Open,
    Sleep,
)
from mass.errors import InvalidValue, MassClientError, Unreachable, WaitTimeout
from mass.model import TaskInfo, TaskInfos, TaskOptions, TaskSpec, TaskState
from mass.status import code_of, failure_of, is_silence
from mass.units import told_apart
from mass.v1 import task_pb2, types_pb2

log = logging.getLogger("mass.client")

PATIENCE_SECONDS = 10.0
DELAY_FIRST_SECONDS = 0.1
DELAY_SECONDS_MAX = 1.0
TASKS_PER_CALL_MAX = 10_000
PAGE_SIZE = 1_000
# A map keeps at most two batches open: one whose results are taken, one that runs meanwhile.
MAP_BATCH_TASKS_MAX = 1_000
MAP_BATCH_BYTES_MAX = MESSAGE_SENT_BYTES_MAX // 2
STREAMS = {"stdout": types_pb2.OUTPUT_STREAM_STDOUT, "stderr": types_pb2.OUTPUT_STREAM_STDERR}


class HasId(Protocol):
    """A task in any form: a handle or a TaskInfo."""

    @property
    def id(self) -> str:
        """The task's id."""


TaskLike: TypeAlias = str | HasId
Command: TypeAlias = Sequence[str]
Select: TypeAlias = Callable[[TaskInfo], Iterable[TaskInfo]]
Element = TypeVar("Element")


class Patience:
    """Decides after each failed attempt whether to try again, and when."""

    def __init__(self, address: str, seconds: float) -> None:
        self._address = address
        self._seconds = seconds
        self.reset()

    def reset(self) -> None:
        """Forget earlier failures: the controller has answered."""
        self._give_up_at: float | None = None
        self._delay = DELAY_FIRST_SECONDS

    def delay_seconds(self, error: grpc.RpcError) -> float:
        """Return how long to wait before the next attempt.

        Raises:
            Refused: the controller has answered, with a refusal.
            Unreachable: the controller has not answered for the whole patience.
        """
        if not is_silence(error):
            raise failure_of(error) from error
        now = time.monotonic()
        if self._give_up_at is None:
            self._give_up_at = now + self._seconds
        if now + self._delay > self._give_up_at:
            raise Unreachable(
                f"controller {self._address} has not answered for {self._seconds:g} s; start one "
                "with 'mass controller', or name another with MASS_CONTROLLER"
            ) from error
        delay, self._delay = self._delay, min(self._delay * 2, DELAY_SECONDS_MAX)
        return delay


class Flows:
    """The bodies. They hold no state, so any number of them may be under way."""

    def __init__(self, address: str, patience_seconds: float, user: str | None) -> None:
        self.address = address
        self.patience_seconds = patience_seconds
        self.user = user if user is not None else _user_name()

    def submit(self, specs: Iterable[TaskSpec], request_id: str | None) -> Flow[list[str]]:
        """Submit tasks, all or none, and return their ids in the same order."""
        return self._submit([spec.to_wire() for spec in specs], request_id)

    def get(self, task: TaskLike) -> Flow[TaskInfo]:
        """Return one task."""
        response = yield from self._call("GetTask", task_pb2.GetTaskRequest(id=id_of(task)))
        return TaskInfo.from_wire(response.task)

    def pages(self, states: Iterable[TaskState]) -> ItemFlow[TaskInfo]:
        """Yield tasks, newest first, a page at a time."""
        request = task_pb2.ListTasksRequest(
            page_size=PAGE_SIZE, states=[f"TASK_STATE_{state.value}" for state in states]
        )
        while True:
            page = yield from self._call("ListTasks", request)
            for task in page.tasks:
                yield Item(TaskInfo.from_wire(task))
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def cancel(
        self, tasks: TaskLike | Iterable[TaskLike], grace_seconds: float | None
    ) -> Flow[TaskInfos]:
        """End tasks and return them as they are now."""
        request = task_pb2.CancelTasksRequest(ids=ids_of(tasks))
        if not request.ids:
            return []
        if grace_seconds is not None:
            request.grace.FromNanoseconds(round(grace_seconds * 1e9))
        response = yield from self._call("CancelTasks", request)
        return [TaskInfo.from_wire(task) for task in response.tasks]

    def watch(
        self, tasks: Iterable[TaskLike], timeout: float | None, select: Select
    ) -> ItemFlow[TaskInfo]:
        """Yield what `select` makes of each task now and at each change, until all have ended.

        A controller that restarts meanwhile is waited for; a task may then be told of again.
        """
        if timeout is not None and not timeout > 0:
            raise InvalidValue(f"timeout {timeout} must be above 0 seconds; get() does not wait")
        until = None if timeout is None else time.monotonic() + timeout
        pending = dict.fromkeys(ids_of(tasks))
        patience = Patience(self.address, self.patience_seconds)
        while pending:
            left = _seconds_left(until, timeout, pending)
            stream = yield Open("WatchTasks", task_pb2.WatchTasksRequest(ids=pending), left)
            try:
                while (response := (yield Next(stream))) is not None:
                    patience.reset()
                    info = TaskInfo.from_wire(response.task)
                    if info.ended:
                        for name in info.names:
                            pending.pop(name, None)
                    for selected in select(info):
                        yield Item(selected)
                if pending:
                    raise MassClientError(
                        f"the controller stopped telling about task {next(iter(pending))}"
                    )
                return
            except grpc.RpcError as error:
                if until is not None and code_of(error) is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise _timed_out(timeout, pending) from error
                delay = patience.delay_seconds(error)
            finally:
                stream.cancel()
            left = _seconds_left(until, timeout, pending)
            yield Sleep(delay if left is None else min(delay, left))

    def as_completed(self, tasks: Iterable[TaskLike], timeout: float | None) -> ItemFlow[TaskInfo]:
        """Yield each task once, as it ends."""
        return self.watch(tasks, timeout, _ended_once())

    def in_order(self, tasks: Iterable[TaskLike], timeout: float | None) -> ItemFlow[TaskInfo]:
        """Yield each task once it and those before it have ended, in the order given."""
        ids = ids_of(tasks)
        return self.watch(ids, timeout, _in_order(ids))

    def logs(
        self, task: TaskLike, follow: bool, stream: str, attempt: int, tail_bytes: int
    ) -> ItemFlow[bytes]:
        """Yield parts of an output.

        After a restart of the controller the output is read again and what was yielded before is
        left out. With tail_bytes that place is unknown, so the failure is then raised.
        """
        if stream not in STREAMS:
            raise InvalidValue(f"stream '{stream}' must be stdout or stderr")
        request = task_pb2.ReadTaskLogRequest(
            id=id_of(task),
            stream=STREAMS[stream],
            follow=follow,
            attempt=attempt,
            tail_bytes=tail_bytes,
        )
        patience = Patience(self.address, self.patience_seconds)
        yielded_bytes = 0
        while True:
            skip_bytes = yielded_bytes
            opened = yield Open("ReadTaskLog", request)
            try:
                while (part := (yield Next(opened))) is not None:
                    patience.reset()
                    if part.note:
                        log.warning("task %s %s: %s", request.id, stream, part.note)
                    data = part.data[skip_bytes:]
                    skip_bytes = max(0, skip_bytes - len(part.data))
                    yielded_bytes += len(data)
                    if data:
                        yield Item(data)
                return
            except grpc.RpcError as error:
                if tail_bytes and yielded_bytes:
                    raise failure_of(error) from error
                delay = patience.delay_seconds(error)
            finally:
                opened.cancel()
            yield Sleep(delay)

    def map(
        self,
        command: Command | Callable[[Element], Command],
        items: Iterable[Element],
        options: TaskOptions,
    ) -> ItemFlow[TaskInfo]:
        """Submit a task for each item and yield them in order, once each has ended."""
        make = command if callable(command) else _template(command)
        specs = (TaskSpec(make(item), **options).to_wire() for item in items)
        batches = _batches(specs)
        ahead: deque[list[str]] = deque()
        while True:
            for batch in islice(batches, 2 - len(ahead)):
                ahead.append((yield from self._submit(batch, None)))
            if not ahead:
                return
            yield from self.in_order(ahead.popleft(), None)

    def _submit(self, messages: Sequence[types_pb2.TaskSpec], request_id: str | None) -> Flow[Any]:
        if not messages:
            return []
        if len(messages) > TASKS_PER_CALL_MAX:
            raise InvalidValue(
                f"{len(messages)} tasks in one call; it takes {TASKS_PER_CALL_MAX}, so split them"
            )
        request = task_pb2.SubmitTasksRequest(
            request_id=request_id or uuid.uuid4().hex, tasks=messages, user=self.user
        )
        if request.ByteSize() > MESSAGE_SENT_BYTES_MAX:
            size, most = told_apart(request.ByteSize(), MESSAGE_SENT_BYTES_MAX)
            raise InvalidValue(
                f"{len(messages)} tasks have {size}; one call carries {most}, so split them"
            )
        response = yield from self._call("SubmitTasks", request)
        return list(response.ids)

    def _call(self, method: str, request: Any) -> Flow[Any]:
        patience = Patience(self.address, self.patience_seconds)
        while True:
            try:
                return (yield Call(method, request))
            except grpc.RpcError as error:
                delay = patience.delay_seconds(error)
            yield Sleep(delay)


def id_of(task: TaskLike) -> str:
    """Return a task's id."""
    return task if isinstance(task, str) else task.id


def ids_of(tasks: TaskLike | Iterable[TaskLike]) -> list[str]:
    """Return the ids of tasks, at most 10,000; a single task is taken as one.

    Raises:
        InvalidValue: there are more.
    """
    if isinstance(tasks, str):
        return [tasks]
    ids = [id_of(task) for task in tasks] if isinstance(tasks, Iterable) else [tasks.id]
    if len(ids) > TASKS_PER_CALL_MAX:
        raise InvalidValue(
            f"{len(ids)} tasks in one call; it takes {TASKS_PER_CALL_MAX}, so split them"
        )
    return ids


def every_change(info: TaskInfo) -> Iterable[TaskInfo]:
    """Select everything."""
    return (info,)


def _ended_once() -> Select:
    seen: set[str] = set()

    def select(info: TaskInfo) -> Iterable[TaskInfo]:
        if not info.ended or info.id in seen:
            return ()
        seen.add(info.id)
        return (info,)

    return select


def _in_order(ids: Sequence[str]) -> Select:
    waiting = deque(ids)
    ended: dict[str, TaskInfo] = {}

    def select(info: TaskInfo) -> Iterable[TaskInfo]:
        if info.ended:
            ended.update(dict.fromkeys(info.names, info))
        while waiting and waiting[0] in ended:
            yield ended[waiting.popleft()]

    return select


def _template(command: Command) -> Callable[[object], Command]:
    if isinstance(command, str) or not any("{}" in word for word in command):
        raise InvalidValue(f"command {command!r} must be a list of words with a {{}} for the item")

    def make(item: object) -> Command:
        return [word.replace("{}", str(item)) for word in command]

    return make


def _batches(
    messages: Iterable[types_pb2.TaskSpec],
) -> Iterator[list[types_pb2.TaskSpec]]:
    batch: list[types_pb2.TaskSpec] = []
    batch_bytes = 0
    for message in messages:
        message_bytes = message.ByteSize()
        if batch and (
            len(batch) == MAP_BATCH_TASKS_MAX or batch_bytes + message_bytes > MAP_BATCH_BYTES_MAX
        ):
            yield batch
            batch, batch_bytes = [], 0
        batch.append(message)
        batch_bytes += message_bytes
    if batch:
        yield batch


def _seconds_left(until: float | None, timeout: float | None, pending: Any) -> float | None:
    if until is None or not pending:
        return None
    left = until - time.monotonic()
    if left <= 0:
        raise _timed_out(timeout, pending)
    return left


def _timed_out(timeout: float | None, pending: Iterable[str]) -> WaitTimeout:
    ids = list(pending)
    return WaitTimeout(
        f"after {timeout:g} s {len(ids)} tasks have not ended, the first of them task {ids[0]}",
        ids,
    )


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"

"""The awaiting client and its handle of a task.

The rule: what a method does is in `mass.flows`, once for this client and for `mass.Client`; here is
only how it is called. A client belongs to the event loop that first uses it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from types import TracebackType
from typing import TypeAlias, Unpack

from mass.address import controller_address
from mass.effects import AwaitingRunner
from mass.failures import task_failed
from mass.flows import PATIENCE_SECONDS, Command, Element, Flows, TaskLike, every_change
from mass.model import TaskInfo, TaskInfos, TaskOptions, TaskSpec, TaskState


class AsyncClient:
    """A controller's tasks as plain methods. Use it as a context manager, or close it.

    `address` is HOST:PORT, else MASS_CONTROLLER, else 127.0.0.1:7461. Another machine's is refused
    without `insecure` (else MASS_INSECURE), for there is no TLS yet. `user` is who submits, else
    who runs this process. A controller that does not answer is asked again for `patience_seconds`.

    Every method that asks the controller raises Refused when it says no, NotFound when a task is
    unknown, and Unreachable when it has not answered for the patience.

        async with mass.AsyncClient() as client:
            task = await client.submit(["./train", "--epochs", "3"], mem="8GiB", retries=1)
            print((await task.result()).memory_peak_bytes)

    Raises:
        InvalidValue: the address cannot be, or is another machine's.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        insecure: bool | None = None,
        user: str | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.address = controller_address(address, insecure)
        self.patience_seconds = patience_seconds
        self._flows = Flows(self.address, patience_seconds, user)
        self.user = self._flows.user
        self._runner = AwaitingRunner(self.address)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; tasks go on. Later calls raise MassClientError."""
        await self._runner.close()

    async def submit(
        self,
        command: Sequence[str],
        *,
        request_id: str | None = None,
        **options: Unpack[TaskOptions],
    ) -> AsyncTask:
        """Submit a task and return its handle. Options are the fields of TaskSpec.

        `request_id` (at most 64 characters) makes the submit safe to repeat from another process:
        the same id returns the same task. Without it an own one covers the repetitions in here.

            task = await client.submit(["align", "s1.fq"], mem="2GiB", time_limit="1h")

        Raises:
            InvalidValue: an option that cannot be; nothing was asked.
        """
        tasks = await self.submit_many([TaskSpec(command, **options)], request_id=request_id)
        return tasks[0]

    async def submit_many(
        self, specs: Iterable[TaskSpec], *, request_id: str | None = None
    ) -> AsyncTasks:
        """Submit at most 10,000 tasks, all or none, and return their handles in the same order.

            specs = [mass.TaskSpec(["align", f], mem="2GiB") for f in files]
            tasks = await client.submit_many(specs)

        Raises:
            InvalidValue: an option that cannot be, or too many tasks; nothing was asked.
        """
        ids = await self._runner.run(self._flows.submit(specs, request_id))
        return [AsyncTask(self, task_id) for task_id in ids]

    def task(self, task_id: str) -> AsyncTask:
        """Return the handle of a task that is known by its id. The controller is not asked."""
        return AsyncTask(self, task_id)

    async def get(self, task: TaskLike) -> TaskInfo:
        """Return a task as it is now, or raise NotFound.

        Example:
            print((await client.get("12")).state)
        """
        return await self._runner.run(self._flows.get(task))

    def list(self, states: Iterable[TaskState] = ()) -> AsyncIterator[TaskInfo]:
        """Yield tasks, newest first, only those in one of the states where any are named.

        They are fetched 1,000 at a time as the iteration goes on.

            running = [task.id async for task in client.list([mass.TaskState.RUNNING])]
        """
        return self._runner.iterate(self._flows.pages(states))

    async def wait(self, tasks: Iterable[TaskLike], timeout: float | None = None) -> TaskInfos:
        """Return at most 10,000 tasks in the order given, once all have ended, however they did.

        `timeout` is in seconds, above 0; None waits for ever.

            failed = [info for info in await client.wait(tasks) if not info.succeeded]

        Raises:
            WaitTimeout: the time is over; its `pending_ids` have not ended. Nothing is cancelled.
        """
        ended = self._runner.iterate(self._flows.in_order(tasks, timeout))
        return [info async for info in ended]

    def as_completed(
        self, tasks: Iterable[TaskLike], timeout: float | None = None
    ) -> AsyncIterator[TaskInfo]:
        """Yield each of at most 10,000 tasks once, as it ends. As `wait` in all else.

        Example:
            async for info in client.as_completed(tasks):
                print(info.id, info.state.value)
        """
        return self._runner.iterate(self._flows.as_completed(tasks, timeout))

    def watch(
        self, tasks: Iterable[TaskLike], timeout: float | None = None
    ) -> AsyncIterator[TaskInfo]:
        """Yield each of at most 10,000 tasks now and at each change, until all have ended."""
        return self._runner.iterate(self._flows.watch(tasks, timeout, every_change))

    def logs(
        self,
        task: TaskLike,
        *,
        follow: bool = False,
        stream: str = "stdout",
        attempt: int = 0,
        tail_bytes: int = 0,
    ) -> AsyncIterator[bytes]:
        """Yield a task's output in parts as they come.

        With `follow` it goes on until the attempt has ended. `stream` is stdout or stderr,
        `attempt` 0 the latest, `tail_bytes` (at most 65,536) keeps only the end, 0 everything. A
        gap is told by a warning of the logger `mass.client`.

            async for part in client.logs("12", stream="stderr"):
                sys.stderr.buffer.write(part)
        """
        return self._runner.iterate(self._flows.logs(task, follow, stream, attempt, tail_bytes))

    async def cancel(
        self, tasks: TaskLike | Iterable[TaskLike], *, grace_seconds: float | None = None
    ) -> TaskInfos:
        """End tasks (at most 10,000) and return them as they are now; ended ones stay as they are.

        `grace_seconds` is the time between SIGTERM and SIGKILL, 0 to 3,600; None means 10 s. An
        unknown id refuses the whole call.

            await client.cancel(tasks, grace_seconds=1)
        """
        return await self._runner.run(self._flows.cancel(tasks, grace_seconds))

    def map(
        self,
        command: Command | Callable[[Element], Command],
        items: Iterable[Element],
        **options: Unpack[TaskOptions],
    ) -> AsyncIterator[TaskInfo]:
        """Submit a task for each item and yield them, ended, in the order of the items.

        In a command every `{}` stands for the item as text; a function makes a command of an item.
        Tasks are submitted in batches of at most 1,000, of which two are open at a time, so `items`
        may be endless; nothing is submitted before the iteration begins. A task that failed is
        yielded like the others: look at `succeeded`. Leaving the iteration early leaves the tasks
        that are open running.

            async for info in client.map(["wc", "-l", "{}"], files, mem="64MiB"):
                print(info.command[-1], info.state.value)
        """
        return self._runner.iterate(self._flows.map(command, items, options))


class AsyncTask:
    """A handle of one task: its id, and the client's methods about it."""

    __slots__ = ("_client", "id")

    def __init__(self, client: AsyncClient, task_id: str) -> None:
        self._client = client
        self.id = task_id

    def __repr__(self) -> str:
        return f"<mass.AsyncTask {self.id}>"

    async def info(self) -> TaskInfo:
        """Return the task as it is now."""
        return await self._client.get(self)

    async def wait(self, timeout: float | None = None) -> TaskInfo:
        """Return the task once it has ended, however it did; `timeout` is in seconds.

        Raises:
            WaitTimeout: it has not ended in time; it goes on.
        """
        return (await self._client.wait([self], timeout))[0]

    async def result(self, timeout: float | None = None) -> TaskInfo:
        """Return the task once it has succeeded; `timeout` is in seconds.

        Raises:
            TaskFailed: it ended in another way; TaskOutOfMemory, TaskTimedOut, TaskCancelled and
                TaskLost are the kinds that a caller may want to tell apart.
            WaitTimeout: it has not ended in time; it goes on.
        """
        info = await self.wait(timeout)
        if not info.succeeded:
            raise task_failed(info)
        return info

    def logs(
        self,
        *,
        follow: bool = False,
        stream: str = "stdout",
        attempt: int = 0,
        tail_bytes: int = 0,
    ) -> AsyncIterator[bytes]:
        """Yield the task's output in parts, as AsyncClient.logs does."""
        return self._client.logs(
            self, follow=follow, stream=stream, attempt=attempt, tail_bytes=tail_bytes
        )

    async def cancel(self, *, grace_seconds: float | None = None) -> TaskInfo:
        """End the task and return it as it is now; an ended one stays as it is."""
        return (await self._client.cancel(self, grace_seconds=grace_seconds))[0]


AsyncTasks: TypeAlias = list[AsyncTask]  # inside AsyncClient, `list` is a method

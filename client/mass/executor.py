"""An Executor of the standard library whose calls run as tasks, placed by memory.

The rule: one thread serves all futures of an executor. It runs an event loop of its own that alone
talks to the controller and alone settles futures; other threads only leave word under the lock.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import shutil
import sys
import tempfile
import threading
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Executor as BaseExecutor
from concurrent.futures import Future
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, Unpack

from mass.address import controller_address
from mass.aio import AsyncClient
from mass.callfile import (
    CALL_SUFFIX,
    OUTCOME_SUFFIX,
    Outcome,
    call_bytes,
    process,
    read_outcome,
    remove_files,
    run_chunk,
    write_whole,
)
from mass.client import Client
from mass.errors import CallError, InvalidValue, MassClientError, Refused
from mass.failures import task_failed
from mass.flows import PATIENCE_SECONDS
from mass.model import TaskInfo, TaskOptions, TaskSpec, TaskState

log = logging.getLogger("mass.client")

CALLS_OPEN_MAX = 100_000  # beyond it submit refuses
TASKS_OPEN_MAX = 10_000  # beyond it calls wait here; a watch takes no more
BATCH_TASKS_MAX = 1_000
OUTCOME_WAIT_SECONDS = 5.0  # a network file system may show a file this much later
OUTCOME_PAUSE_SECONDS = 0.05
WAITING = frozenset({TaskState.HELD, TaskState.PENDING})
EXIT_CODE_RAISED = 1
NAME_LENGTH_MAX = 60
NOT_OF_CALLS = ("array", "array_running_max", "key")

P = ParamSpec("P")
T = TypeVar("T")


class _Call:
    """One call: its future, its files, and its task once that is submitted."""

    __slots__ = ("future", "name", "notified", "path", "task_id")

    def __init__(self, future: Future[Any], name: str, path: Path) -> None:
        self.future = future
        self.name = name
        self.path = path
        self.task_id = ""
        self.notified = False


class _Watch:
    """The calls that one stream of the controller tells about."""

    __slots__ = ("follower", "open")

    def __init__(self, calls: Iterable[_Call]) -> None:
        self.open = {call.task_id: call for call in calls}
        self.follower: asyncio.Task[None] | None = None


class Executor(BaseExecutor):
    """Runs Python calls as tasks of a controller.

    `client` tells the controller, the user and the patience; None means those of `mass.Client()`.
    Call and outcome travel as files in `directory`, the same path on this machine and on the nodes;
    None makes one below the current directory and removes it at the end. `python` is
    the interpreter on the nodes, where MASS must be installed; None means this one. The options
    are those of TaskSpec, for each call; a name that is not given is the function's.

        with mass.Executor(mem="2GiB", retries=1) as executor:
            for length in executor.map(len, ["a", "bb"]):
                print(length)

    A future's exception is what the call raised, or TaskOutOfMemory, TaskTimedOut, TaskCancelled,
    TaskLost or TaskFailed when its task ended otherwise, or CallError when the outcome cannot be
    brought back, or what Client.submit raises. `Future.cancel` works until a node has the task.

    Raises:
        InvalidValue: an option that cannot be.
        CallError: it is made while a task imports the main module that made the call.
    """

    def __init__(
        self,
        client: Client | None = None,
        *,
        directory: str | Path | None = None,
        python: str | None = None,
        **options: Unpack[TaskOptions],
    ) -> None:
        if process.importing_main:
            raise CallError(
                "a task imports the main module for its call, and that module makes an Executor; "
                "put what starts the work under: if __name__ == '__main__':"
            )
        unfit = [name for name in NOT_OF_CALLS if name in options]
        if unfit:
            raise InvalidValue(f"{unfit[0]} cannot be an option of calls: each is a task by itself")
        TaskSpec(["python"], **options).to_wire()
        self._address = client.address if client else controller_address(None, None)
        self._user = client.user if client else None
        self._patience_seconds = client.patience_seconds if client else PATIENCE_SECONDS
        self._python = python or sys.executable
        self._options = options
        self._own_directory = directory is None
        # A directory may be shared by executors on many machines.
        self._name = uuid.uuid4().hex[:12]
        self._wake = asyncio.Event()
        # Under the lock, for callers' threads leave it for the loop's.
        self._lock = threading.Lock()
        self._directory = None if directory is None else Path(directory).absolute()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._shut_down = False
        self._count = 0
        self._open: dict[Future[Any], _Call] = {}
        self._queued: deque[_Call] = deque()
        self._to_cancel: list[_Call] = []
        # The loop's alone.
        self._tasks_open = 0
        self._watches: list[_Watch] = []
        self._jobs: set[asyncio.Task[None]] = set()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a call run as a task and return its future. The controller is not waited for.

            future = executor.submit(pow, 2, 10)

        Raises:
            CallError: function or arguments cannot be pickled.
            Refused: 100,000 calls are open.
            RuntimeError: the executor is shut down.
        """
        content = call_bytes(fn, args, kwargs)
        with self._lock:
            self._check_not_shut_down()
            if len(self._open) >= CALLS_OPEN_MAX:
                raise Refused(
                    f"{CALLS_OPEN_MAX} calls are open, which is the bound of an Executor",
                    "CALLS_OPEN_MAX",
                    try_later=True,
                )
            path = self._call_path()
        write_whole(path, content)
        future: Future[T] = Future()
        call = _Call(future, _name_of(fn), path)
        with self._lock:
            self._check_not_shut_down()
            self._open[future] = call
            self._queued.append(call)
            self._start()
        future.add_done_callback(self._done)
        self._tell()
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[T]:
        """Yield the function's values for the iterables' elements, in order.

        `chunksize` calls go into one task. `timeout` is in seconds, from now.

        Raises:
            TimeoutError: the time is over; what has not started is cancelled.
            ValueError: chunksize is below 1.
        """
        if chunksize < 1:
            raise ValueError(f"chunksize {chunksize} is below the bound of 1")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout)
        chunks = _chunks(zip(*iterables, strict=False), chunksize)
        return chain.from_iterable(super().map(partial(run_chunk, fn), chunks, timeout=timeout))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; with `wait` return once all futures are done.

        With `cancel_futures` all tasks are cancelled: a future whose call has not started is
        cancelled, the others get TaskCancelled.
        """
        with self._lock:
            self._shut_down = True
            calls = list(self._open.values())
            thread = self._thread
        if cancel_futures:
            for call in calls:
                if not call.future.cancel():
                    with self._lock:
                        self._to_cancel.append(call)
        atexit.unregister(self.shutdown)
        self._tell()
        if wait and thread is not None:
            thread.join()

    # What callers' threads leave for the loop.

    def _call_path(self) -> Path:
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix=".mass-calls-", dir=Path.cwd()))
        self._count += 1
        return self._directory / f"{self._name}-{self._count}{CALL_SUFFIX}"

    def _check_not_shut_down(self) -> None:
        if self._shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _start(self) -> None:
        if self._loop is not None:
            return
        self._loop = asyncio.new_event_loop()
        # A daemon, so that the interpreter's end gets as far as the atexit callback; that one
        # waits for the futures, as the executors of the standard library do.
        self._thread = threading.Thread(target=self._serve, name="mass-executor", daemon=True)
        atexit.register(self.shutdown)
        self._thread.start()

    def _tell(self) -> None:
        """Wake the loop; once it is closed it has done all there was to do."""
        with self._lock:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._wake.set)

    def _done(self, future: Future[Any]) -> None:
        if not future.cancelled():
            return
        with self._lock:
            call = self._open.get(future)
            if call is not None:
                self._to_cancel.append(call)
        self._tell()

    # The loop's thread.

    def _serve(self) -> None:
        assert self._loop is not None
        try:
            self._loop.run_until_complete(self._main())
        finally:
            with self._lock:
                self._loop.close()
            if self._own_directory and self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)

    async def _main(self) -> None:
        client = AsyncClient(
            self._address,
            insecure=True,  # whoever gave the address has settled that
            user=self._user,
            patience_seconds=self._patience_seconds,
        )
        try:
            while not self._is_finished():
                await self._wake.wait()
                self._wake.clear()
                await self._submit_queued(client)
                await self._cancel_left(client)
        except BaseException as error:
            # Whatever it is, nobody may be left waiting for a future that nobody settles.
            for call in self._take_all():
                self._settle(call, error=error)
            raise
        finally:
            for job in self._jobs:
                job.cancel()
            await asyncio.gather(*self._jobs, return_exceptions=True)
            await client.close()

    def _is_finished(self) -> bool:
        with self._lock:
            return self._shut_down and not self._open

    def _take_all(self) -> list[_Call]:
        with self._lock:
            self._shut_down = True
            return list(self._open.values())

    async def _submit_queued(self, client: AsyncClient) -> None:
        while batch := self._next_batch():
            try:
                tasks = await client.submit_many([self._spec(call) for call in batch])
            except MassClientError as error:
                for call in batch:
                    self._settle(call, error=error)
                continue
            for call, task in zip(batch, tasks, strict=True):
                call.task_id = task.id
            self._tasks_open += len(batch)
            self._follow(client, batch)

    def _next_batch(self) -> list[_Call]:
        """Return queued calls that are still wanted, as many as there is room for."""
        with self._lock:
            room = min(BATCH_TASKS_MAX, TASKS_OPEN_MAX - self._tasks_open)
            batch: list[_Call] = []
            while self._queued and len(batch) < room:
                call = self._queued.popleft()
                if not call.future.cancelled():
                    batch.append(call)
            return batch

    def _spec(self, call: _Call) -> TaskSpec:
        command = [self._python, "-m", "mass.call", str(call.path)]
        options: TaskOptions = {"name": call.name[:NAME_LENGTH_MAX], **self._options}
        return TaskSpec(command, **options)

    async def _cancel_left(self, client: AsyncClient) -> None:
        with self._lock:
            calls, self._to_cancel = self._to_cancel, []
        for call in calls:
            if not call.task_id:
                self._settle(call)
        ids = [call.task_id for call in calls if call.task_id]
        for start in range(0, len(ids), BATCH_TASKS_MAX):
            try:
                await client.cancel(ids[start : start + BATCH_TASKS_MAX])
            except MassClientError as error:
                # Their watch goes on and tells how they end.
                log.warning("%d tasks could not be cancelled: %s", len(ids), error)

    def _follow(self, client: AsyncClient, calls: list[_Call]) -> None:
        """Watch calls, together with those of streams that tell about no more than these.

        Each stream tells about more than all younger ones, so n calls have about log2(n) streams,
        and no call moves to a new stream more often than that.
        """
        while self._watches and len(self._watches[-1].open) <= len(calls):
            older = self._watches.pop()
            assert older.follower is not None
            older.follower.cancel()
            calls = [*calls, *older.open.values()]
        watch = _Watch(calls)
        self._watches.append(watch)
        watch.follower = self._begin(self._read(client, watch))

    async def _read(self, client: AsyncClient, watch: _Watch) -> None:
        try:
            async for info in client.watch(list(watch.open)):
                call = watch.open.get(info.id)
                if call is not None and info.ended:
                    del watch.open[info.id]
                    self._begin(self._bring_back(call, info))
                elif call is not None and info.state not in WAITING:
                    self._notify(call)
        except Exception as error:
            # Told to those who wait: they are the only ones who can answer it.
            for call in watch.open.values():
                self._settle(call, error=error)
            watch.open.clear()
        finally:
            if watch in self._watches:
                self._watches.remove(watch)

    async def _bring_back(self, call: _Call, info: TaskInfo) -> None:
        try:
            outcome = await _outcome(call.path.with_suffix(OUTCOME_SUFFIX), info)
        except Exception as error:
            outcome = Outcome(error=error)
        self._settle(call, value=outcome.value, error=outcome.error)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        job = asyncio.get_running_loop().create_task(work)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return job

    def _notify(self, call: _Call) -> None:
        """Make the future running, or tell those who wait that it is cancelled; once."""
        if not call.notified:
            call.notified = True
            call.future.set_running_or_notify_cancel()

    def _settle(
        self, call: _Call, *, value: Any = None, error: BaseException | None = None
    ) -> None:
        with self._lock:
            if self._open.pop(call.future, None) is None:
                return
        self._tasks_open -= bool(call.task_id)
        remove_files(call.path, ended_well=error is None)
        self._notify(call)
        if not call.future.cancelled():
            if error is None:
                call.future.set_result(value)
            else:
                call.future.set_exception(error)
        self._wake.set()


async def _outcome(path: Path, info: TaskInfo) -> Outcome:
    """Return how the call of an ended task ended, once its file is seen here."""
    raised = info.state is TaskState.FAILED and info.exit_code == EXIT_CODE_RAISED
    if not info.succeeded and not raised:
        return Outcome(error=task_failed(info))
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + OUTCOME_WAIT_SECONDS
    while True:
        try:
            outcome = read_outcome(path)
        except FileNotFoundError:
            if loop.time() < give_up_at:
                await asyncio.sleep(OUTCOME_PAUSE_SECONDS)
                continue
            if raised:
                return Outcome(error=task_failed(info))
            return Outcome(
                error=CallError(
                    f"task {info.id} has succeeded and its outcome is not at {path}; the directory "
                    "must be the same on this machine and on the nodes"
                )
            )
        if outcome.error is not None and outcome.trace:
            outcome.error.add_note(f"in task {info.id} on node {info.node_id}:\n{outcome.trace}")
        return outcome


def _chunks(rows: Iterator[T], size: int) -> Iterator[list[T]]:
    while chunk := list(islice(rows, size)):
        yield chunk


def _name_of(function: Callable[..., Any]) -> str:
    """Return what people call a function, looking through partial ones."""
    named: Any = function
    while isinstance(named, partial):
        named = named.args[0] if named.func is run_chunk else named.func
    return str(getattr(named, "__qualname__", type(named).__name__))

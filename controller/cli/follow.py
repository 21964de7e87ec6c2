"""Follows tasks: carries their output to the terminal and waits for their end.

The rule: the task's bytes go through unchanged, its standard output to ours and its standard error
to ours; what MASS has to say goes to stderr.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from mass.v1 import task_pb2, types_pb2

from controller.cli.client import Client
from controller.cli.exits import task_exit_code
from controller.cli.progress import Progress
from controller.cli.records import ENDED_STATES, task_label, task_state
from controller.cli.session import Session
from controller.core.errors import MassError

# After a task's end its output only has to be fetched; an agent that is gone must not hold us.
OUTPUT_AFTER_END_SECONDS = 30.0

STREAMS = (types_pb2.OUTPUT_STREAM_STDOUT, types_pb2.OUTPUT_STREAM_STDERR)
LIVE_STATES = ENDED_STATES | {
    types_pb2.TASK_STATE_RUNNING,
    types_pb2.TASK_STATE_PAUSED,
    types_pb2.TASK_STATE_STOPPING,
}


class OutputFollower:
    """Copies the outputs of one attempt in two threads, until it has ended."""

    def __init__(
        self,
        session: Session,
        requests: Sequence[tuple[task_pb2.ReadTaskLogRequest, BinaryIO]],
    ) -> None:
        self._session = session
        self._client: Client = session.client
        self.error: MassError | None = None
        self._threads = [
            # A daemon thread does not keep the process alive when the user has had enough.
            threading.Thread(target=self._copy, args=(request, sink), daemon=True)
            for request, sink in requests
        ]
        for thread in self._threads:
            thread.start()

    def join(self, timeout_seconds: float | None) -> None:
        """Wait until both outputs have been copied, or the time is over."""
        for thread in self._threads:
            thread.join(timeout_seconds)
            if thread.is_alive():
                self._session.note("the rest of the output does not arrive; see 'mass task logs'")
                return

    def _copy(self, request: task_pb2.ReadTaskLogRequest, sink: BinaryIO) -> None:
        try:
            copy_output(self._session, request, sink)
        except MassError as error:
            self.error = error
        except BrokenPipeError:
            # Whoever read our output has gone; the task itself goes on.
            return


def copy_output(session: Session, request: task_pb2.ReadTaskLogRequest, sink: BinaryIO) -> None:
    """Copy one output to a stream; notes of the controller go to stderr."""
    for data, note in session.client.read_log(request):
        if note:
            session.note(f"task {request.id}: {note}")
        if data:
            sink.write(data)
            sink.flush()


def sinks(session: Session) -> tuple[BinaryIO, BinaryIO]:
    """Return where a task's two outputs go; with JSON stdout is kept for the data."""
    error_sink = sys.stderr.buffer
    return (error_sink if session.json else sys.stdout.buffer), error_sink


class Canceller:
    """Turns the first Ctrl-C (or SIGTERM) into a cancel of the task that is being followed.

    The signal interrupts nothing: a thread sends the cancel and the following goes on. Once that
    is sent, or while there is no task yet, a second signal raises KeyboardInterrupt; in between it
    changes nothing, because leaving then would leave the task running.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, session: Session) -> None:
        self._session = session
        self._task_id: str | None = None
        self._is_asked = False
        self._is_sent = False
        # Of all queues only this one may be put into by a signal handler.
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to the signals in this block; only the main thread can, others do not."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._on_signal) for number in self.SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def follow(self, task_id: str) -> None:
        """Name the task; a signal that came before cancels it now."""
        self._task_id = task_id
        threading.Thread(target=self._cancel_when_asked, args=(task_id,), daemon=True).start()

    def _on_signal(self, _number: int, _frame: object) -> None:
        if not self._is_asked:
            self._is_asked = True
            self._asked.put(None)
        elif self._is_sent or self._task_id is None:
            raise KeyboardInterrupt

    def _cancel_when_asked(self, task_id: str) -> None:
        self._asked.get()
        self._session.note(f"cancelling task {task_id}; Ctrl-C again to leave")
        try:
            self._session.client.cancel([task_id], None)
        except MassError as error:
            self._session.note(f"task {task_id} is not cancelled: {error.message}")
        finally:
            self._is_sent = True


def run_to_end(session: Session, task_id: str) -> types_pb2.Task:
    """Show a task's output while it runs and return the task as it ended."""
    followers: dict[int, OutputFollower] = {}
    last: types_pb2.Task | None = None
    for task in session.client.watch([task_id]):
        last = task
        _follow_attempt(session, task, followers)
    for follower in followers.values():
        follower.join(OUTPUT_AFTER_END_SECONDS)
        if follower.error is not None:
            session.note(f"output of task {task_id}: {follower.error.message}")
    return last if last is not None else session.client.task(task_id)


def _follow_attempt(
    session: Session, task: types_pb2.Task, followers: dict[int, OutputFollower]
) -> None:
    attempt = task.attempt
    # An attempt that never had a process has no output to wait for.
    started = task.HasField("started_at") and task.state in LIVE_STATES
    if attempt in followers or not started:
        return
    requests = [
        task_pb2.ReadTaskLogRequest(id=task.id, stream=stream, follow=True, attempt=attempt)
        for stream in STREAMS
    ]
    followers[attempt] = OutputFollower(session, list(zip(requests, sinks(session), strict=True)))


def wait_for_end(
    session: Session, task_ids: Sequence[str], quiet: bool, progress: bool | None = False
) -> tuple[list[types_pb2.Task], int]:
    """Wait for tasks and return them by id, with the exit code of the first that failed.

    An array is all its elements. Without `quiet` each one's end is a line on stdout; with JSON
    nothing is printed here. `progress` says on stderr how far it is; None means on a terminal.
    """
    if progress is None:
        progress = sys.stderr.isatty()
    latest: dict[str, types_pb2.Task] = {}
    meter = Progress(sys.stderr) if progress and not session.json else None
    for task in session.client.watch(task_ids):
        before = latest.get(task.id)
        latest[task.id] = task
        if task.state in ENDED_STATES and (before is None or before.state not in ENDED_STATES):
            if meter is not None:
                meter.clear()
            if not quiet and not session.json:
                print(end_line(task), flush=True)
        if meter is not None:
            meter.show(latest)
    if meter is not None:
        meter.clear()
    tasks = list(latest.values())
    codes = [task_exit_code(task) for task in tasks]
    return tasks, next((code for code in codes if code != 0), 0)


def end_line(task: types_pb2.Task) -> str:
    """Return one line for how a task has ended."""
    reason = f": {task.reason}" if task.reason and task_exit_code(task) != 0 else ""
    return f"task {task_label(task)} {task_state(task)}{reason}"

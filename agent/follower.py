"""Follows the output files of attempts: what is new, how they end, what a reader asks for.

Owns how far each output was shown to the controller, and which old files are kept. The rules kept:
a slow connection skips to the newest output and never queues it; files are trimmed to their bound;
files of ended attempts are kept for the newest ATTEMPTS_KEPT of them, other things that a task left
in its directory always. What an attempt that wrote nothing leaves may serve a later one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from pathlib import Path

from mass.v1 import agent_pb2

from agent import wire
from agent.attempt import Key
from agent.output import OutputFile, OutputPaths, attempt_paths
from agent.reuse import DIRECTORY_MODE, give_on

LOG = logging.getLogger(__name__)

ATTEMPTS_KEPT = 1_000
ERROR_BYTES_MAX = 2_048
STREAMS = (wire.STDOUT, wire.STDERR)


def error_file(directory: str) -> str:
    """Return the file in an attempt's directory in which it may say why it failed."""
    return os.path.join(directory, "error")


class Followed:
    """One output of a running attempt."""

    __slots__ = ("file", "path", "sent_offset", "size_bytes")

    def __init__(self, path: str) -> None:
        self.path = path
        self.file: OutputFile | None = None  # made at the first byte: most outputs stay empty
        self.size_bytes = 0  # at the last look
        self.sent_offset = 0

    def opened(self) -> OutputFile:
        """Return the file, made at the first need."""
        if self.file is None:
            self.file = OutputFile(self.path)
        return self.file


class Follower:
    """The outputs below one work directory."""

    def __init__(self, work_dir: Path, *, attempts_kept: int = ATTEMPTS_KEPT) -> None:
        """Look for what earlier agents left, the oldest first."""
        self._work_dir = str(work_dir)
        self._running: dict[tuple[Key, int], Followed] = {}
        self._attempts_kept = attempts_kept
        # Paths are kept with each attempt: building one anew costs more than reading its size.
        self._paths: dict[Key, OutputPaths] = {}  # of running attempts
        self._ended: OrderedDict[Key, OutputPaths] = OrderedDict(
            (key, attempt_paths(self._work_dir, *key)) for key in _left(work_dir / "tasks")
        )
        # Tasks whose first attempt has ended here without output; the bound is that of _ended.
        self._unused: deque[int] = deque(maxlen=attempts_kept)
        self._forget_oldest()

    def begin(self, key: Key) -> tuple[str, str, str]:
        """Make an attempt's directory; return it and the paths of both outputs.

        Raises:
            OSError: the directory cannot be made.
        """
        paths = self._paths[key] = attempt_paths(self._work_dir, *key)
        self._ended.pop(key, None)  # or its files would be removed while it runs
        directory = os.path.dirname(paths.stdout)
        if not self._take_over(key):
            _make(directory)
        self._running[key, wire.STDOUT] = Followed(paths.stdout)
        self._running[key, wire.STDERR] = Followed(paths.stderr)
        return directory, paths.stdout, paths.stderr

    def end(self, key: Key) -> None:
        """Stop following; the files stay until newer ended attempts push them out."""
        paths = self._paths.pop(key, None)
        if paths is None:
            return
        for stream in STREAMS:
            self._running.pop((key, stream), None)
        self._ended[key] = paths
        if key[1] == 1 and _size_bytes(paths.stdout) == _size_bytes(paths.stderr) == 0:
            self._unused.append(key[0])
        self._forget_oldest()

    def set_aside(self) -> str | None:
        """Move all that ended attempts left out of the way of the next ones, whose keys begin anew.

        Nothing may be running. Returns where it is now, None where there was nothing.

        Raises:
            OSError: the disk refuses; nothing has changed.
        """
        assert not self._running
        tasks = os.path.join(self._work_dir, "tasks")
        aside = f"{tasks}-{time.time_ns()}"
        try:
            os.rename(tasks, aside)
            is_moved = True
        except FileNotFoundError:
            is_moved = False
        self._ended.clear()
        self._unused.clear()
        return aside if is_moved else None

    def look(self) -> list[tuple[Key, int]]:
        """Trim what has grown, and return the outputs that have something new.

        Costs one stat per output of a running attempt.
        """
        grown = []
        for (key, stream), followed in self._running.items():
            size_bytes = _size_bytes(followed.path)
            if size_bytes == followed.size_bytes:
                continue
            try:
                trimmed = followed.opened().trim()
            except OSError as error:
                LOG.warning("output not trimmed file=%s reason=%s", followed.path, error)
                trimmed = 0
            followed.size_bytes = _size_bytes(followed.path) if trimmed else size_bytes
            grown.append((key, stream))
        return grown

    def chunk(self, key: Key, stream: int) -> agent_pb2.AgentMessage | None:
        """Return what is new of one output, at most 64 KiB and the newest; None for nothing."""
        followed = self._running.get((key, stream))
        if followed is None:
            return None
        try:
            file = followed.opened()
            start = max(followed.sent_offset, file.total_bytes - wire.TAIL_BYTES_MAX)
            piece = file.read(start, wire.TAIL_BYTES_MAX)
        except OSError as error:
            LOG.warning("output not read file=%s reason=%s", followed.path, error)
            return None
        if not piece.data:
            return None
        followed.sent_offset = piece.next_offset
        return agent_pb2.AgentMessage(
            output=agent_pb2.OutputChunk(
                task_id=key[0],
                attempt=key[1],
                stream=_stream(stream),
                offset_bytes=piece.offset,
                data=piece.data,
            )
        )

    def tail(self, key: Key, stream: int) -> bytes:
        """Return the last 64 KiB of one output; empty where there is none, or it cannot be read."""
        path = self._path(key, stream)
        if _size_bytes(path) == 0:
            return b""
        try:
            return OutputFile(path).tail(wire.TAIL_BYTES_MAX).data
        except OSError as error:
            LOG.warning("output not read file=%s reason=%s", path, error)
            return b""

    def error_text(self, key: Key) -> str:
        """Return the end of what an attempt wrote to its MASS_ERROR_FILE, at most 2 KiB."""
        path = error_file(os.path.dirname(self._path(key, wire.STDOUT)))
        try:
            # A task may put anything there: only a plain file is read, and only its end.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return ""  # most tasks never write one
        with open(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return ""
            try:
                file.seek(max(0, status.st_size - ERROR_BYTES_MAX))
                data = file.read(ERROR_BYTES_MAX)
            except OSError as error:
                LOG.warning("error file not read file=%s reason=%s", path, error)
                return ""
        return data.decode(errors="replace").strip()

    def answer(self, request: agent_pb2.ReadLog) -> agent_pb2.AgentMessage:
        """Return the part of an output that was asked for, or why there is none."""
        key = (request.task_id, request.attempt)
        stream = request.stream or wire.STDOUT
        answer = agent_pb2.LogChunk(request_id=request.request_id)
        path = self._path(key, stream)
        followed = self._running.get((key, stream))
        limit = min(request.length_bytes, wire.LOG_BYTES_MAX) or wire.LOG_BYTES_DEFAULT
        if stream not in STREAMS:
            answer.error = f"output stream {request.stream} is unknown"
        elif limit < 0 or request.offset_bytes < -1:
            answer.error = f"offset {request.offset_bytes} length {request.length_bytes} cannot be"
        elif followed is None and key not in self._ended and not os.path.exists(path):
            answer.error = f"this node keeps no output of task {key[0]} attempt {key[1]}"
        else:
            self._read_into(answer, request.offset_bytes, limit, followed or Followed(path))
            answer.end = answer.end and followed is None
        return agent_pb2.AgentMessage(log=answer)

    def _take_over(self, key: Key) -> bool:
        """Let a task's first attempt have what one that wrote nothing left, if that can be."""
        if key[1] != 1 or not self._unused:
            return False
        return give_on(os.path.join(self._work_dir, "tasks"), self._unused.popleft(), key[0])

    def _read_into(
        self, answer: agent_pb2.LogChunk, offset: int, limit: int, followed: Followed
    ) -> None:
        try:
            file = followed.opened()
            total_bytes = file.total_bytes
            piece = file.tail(limit) if offset == -1 else file.read(offset, limit)
        except OSError as error:
            answer.error = f"{followed.path}: {error.strerror}"
            return
        answer.offset_bytes = piece.offset
        answer.data = piece.data
        answer.end = piece.next_offset >= total_bytes

    def _path(self, key: Key, stream: int) -> str:
        paths = self._paths.get(key) or self._ended.get(key)
        if paths is None:
            paths = attempt_paths(self._work_dir, *key)
        return paths.stderr if stream == wire.STDERR else paths.stdout

    def _forget_oldest(self) -> None:
        while len(self._ended) > self._attempts_kept:
            _, paths = self._ended.popitem(last=False)
            _remove(paths.stdout, paths.stderr)


def _stream(stream: int) -> str:
    return "OUTPUT_STREAM_STDERR" if stream == wire.STDERR else "OUTPUT_STREAM_STDOUT"


def _make(directory: str) -> None:
    """Make a directory; most often only the two lowest are missing."""
    with contextlib.suppress(FileExistsError):
        try:
            os.mkdir(os.path.dirname(directory), DIRECTORY_MODE)
        except FileNotFoundError:
            os.makedirs(directory, DIRECTORY_MODE)
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, DIRECTORY_MODE)


def _size_bytes(path: str) -> int:
    """Return the size, 0 where the file is not there: a task may do what it likes with it."""
    try:
        return os.stat(path, follow_symlinks=False).st_size
    except OSError:
        return 0


def _remove(*paths: str) -> None:
    """Remove output files, then their directories where a task left nothing else in them."""
    for path in paths:
        try:
            os.unlink(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            LOG.warning("output not removed file=%s reason=%s", path, error.strerror)
            return
    directory = os.path.dirname(paths[0])
    for emptied in (directory, os.path.dirname(directory)):
        try:
            os.rmdir(emptied)
        except OSError:
            return  # not empty: a task's own files, or another attempt


def _left(tasks: Path) -> Iterable[Key]:
    """Return the attempts that have a directory, the least recently changed first."""
    found = []
    for directory in tasks.glob("*/*"):
        task_id, attempt = directory.parent.name, directory.name
        if task_id.isdigit() and attempt.isdigit():
            found.append((directory.stat().st_mtime_ns, (int(task_id), int(attempt))))
    return [key for _, key in sorted(found)]

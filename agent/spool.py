"""Ends of attempts that the controller has not acknowledged, one line each in one file.

Owns `<work_dir>/reports/ends`, `reports/cluster`, which says of which cluster's tasks they are, and
the lock of the work directory. The rules kept: an end is in the
spool before it is sent and stays until it is acknowledged, so a crash of the agent loses none; one
agent per work directory; the file is empty when no end is owed.

A file for each end would be simpler, but some file systems search ever longer for a free inode
while files come and go a hundred times a second. A line is one write, so after a crash it is whole
or the last one; it is not synced: it outlives the agent, not the machine, whose end the controller
notices by itself.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from agent.attempt import Ended, GuardStep, GuardStepKind, Key, OomCause, Outcome

LOG = logging.getLogger(__name__)

LINE_BYTES_MAX = 65_536
FILE_BYTES_MAX = 1 << 20  # beyond it the file is written anew with what is still owed
_OUTCOME_FIELDS = tuple(field.name for field in fields(Outcome))
_STEP_FIELDS = tuple(field.name for field in fields(GuardStep))


class WorkDirRefused(Exception):
    """The work directory cannot be used; the message names it and says why."""


class Spool:
    """The unacknowledged ends of one work directory, held by this process alone."""

    def __init__(self, work_dir: Path) -> None:
        """Make the directories and take the lock.

        Raises:
            WorkDirRefused: another agent has it, or it cannot be written.
        """
        self._directory = work_dir / "reports"
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(work_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise WorkDirRefused(f"work directory {work_dir}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(self._lock, 32, 0).decode("ascii", "replace").strip()
            os.close(self._lock)
            raise WorkDirRefused(
                f"work directory {work_dir} is used by another agent (process {owner or 'unknown'})"
                "; give each agent its own --name or --work-dir"
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, b"%d\n" % os.getpid(), 0)
        self._path = self._directory / "ends"
        try:
            self._file = _open(self._path)
        except OSError as error:
            os.close(self._lock)
            raise WorkDirRefused(f"work directory {work_dir}: {error.strerror}") from error
        self._size_bytes = os.fstat(self._file).st_size
        self.cluster_id = self._read_cluster()
        self._kept: dict[Key, bytes] = {}
        self._rewrite_above_bytes = FILE_BYTES_MAX

    def load(self) -> list[tuple[Key, Ended]]:
        """Return the ends of an earlier life, in the order of task and attempt.

        A line that cannot be understood is set aside in the file ends.bad and logged: its attempt
        will be unknown to this agent, and the controller treats it as lost.
        """
        *lines, torn = self._path.read_bytes().split(b"\n")
        ends: dict[Key, Ended] = {}
        damaged = []
        for line in lines:
            try:
                key, ended = _decode(line)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                LOG.error("report set aside file=%s reason=%r", self._path, error)
                damaged.append(line)
                continue
            if ended is None:
                ends.pop(key, None)
            else:
                ends[key] = ended
        if torn:  # a crash in the middle of a write: that end was never sent
            LOG.warning("half a report dropped file=%s", self._path)
            self._cut(self._size_bytes - len(torn))
        self._kept = {key: _encode(key, ended) for key, ended in ends.items()}
        try:
            if damaged:
                with self._path.with_name("ends.bad").open("ab") as bad:
                    bad.write(b"\n".join(damaged) + b"\n")
            self._rewrite()
        except OSError as error:  # a full disk must not keep the agent from telling these ends
            self._stay_long(error)
        return sorted(ends.items())

    def save(self, key: Key, ended: Ended) -> None:
        """Keep an end until `remove`. Raises OSError when the disk refuses."""
        line = _encode(key, ended)
        self._append(line)
        self._kept[key] = line
        if self._size_bytes > self._rewrite_above_bytes:
            try:
                self._rewrite()
            except OSError as error:
                self._stay_long(error)

    def remove(self, key: Key) -> None:
        """Let go of an end; one that was never kept is no matter. Raises OSError as `save`."""
        if self._kept.pop(key, None) is None:
            return
        if self._kept:
            self._append(b"[%d,%d]\n" % key)
        else:
            self._cut(0)

    def join(self, cluster_id: str) -> None:
        """Note of which cluster the ends are from now on. Raises OSError when the disk refuses."""
        if cluster_id == self.cluster_id:
            return
        new = self._directory / "cluster.new"
        new.write_text(cluster_id, encoding="utf-8")
        new.rename(self._directory / "cluster")
        self.cluster_id = cluster_id

    def _read_cluster(self) -> str:
        try:
            return (self._directory / "cluster").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""  # there was no welcome yet

    def close(self) -> None:
        """Give the work directory back."""
        os.close(self._file)
        os.close(self._lock)

    def _append(self, line: bytes) -> None:
        written = os.write(self._file, line)
        if written < len(line):  # the disk is full: half a line must not be in front of the next
            self._cut(self._size_bytes)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        self._size_bytes += written

    def _cut(self, size_bytes: int) -> None:
        os.ftruncate(self._file, size_bytes)
        self._size_bytes = size_bytes

    def _stay_long(self, error: OSError) -> None:
        """Go on with the old file: it has all that is owed, only more of it."""
        self._rewrite_above_bytes *= 2
        LOG.warning("file stays long file=%s reason=%s", self._path, error)

    def _rewrite(self) -> None:
        """Write what is owed to a new file and move it onto the old one."""
        new = self._path.with_name("ends.new")
        new.unlink(missing_ok=True)  # of a crash at this very place
        descriptor = _open(new)
        data = b"".join(self._kept.values())
        try:
            if os.write(descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(new))
            new.rename(self._path)
        except OSError:
            os.close(descriptor)
            raise
        os.close(self._file)
        self._file, self._size_bytes = descriptor, len(data)
        self._rewrite_above_bytes = max(FILE_BYTES_MAX, 2 * len(data))


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _encode(key: Key, ended: Ended) -> bytes:
    outcome = ended.outcome
    values = {name: getattr(outcome, name) for name in _OUTCOME_FIELDS} | {
        "oom_cause": ended.oom_cause.value,
        "timed_out": ended.timed_out,
        "stopped": ended.stopped,
    }
    if ended.agent_stopped:
        values["agent_stopped"] = True
    if (step := ended.guard) is not None:
        shown = {name: getattr(step, name) for name in _STEP_FIELDS}
        values["guard"] = shown | {"kind": step.kind.value}
    return json.dumps([*key, values]).encode() + b"\n"


def _decode(line: bytes) -> tuple[Key, Ended | None]:
    """Return an end, or the key of one that was removed."""
    if len(line) > LINE_BYTES_MAX:
        raise ValueError(f"more than {LINE_BYTES_MAX} bytes")
    task_id, attempt, *rest = json.loads(line)
    key = (int(task_id), int(attempt))
    if not rest:
        return key, None
    (values,) = rest
    cause = OomCause(values.pop("oom_cause"))
    timed_out, stopped = bool(values.pop("timed_out")), bool(values.pop("stopped"))
    guard = _step(values.pop("guard", None))
    agent_stopped = bool(values.pop("agent_stopped", False))
    return key, Ended(Outcome(**values), cause, timed_out, stopped, guard, agent_stopped)


def _step(values: dict[str, Any] | None) -> GuardStep | None:
    if values is None:
        return None
    kind, key = GuardStepKind(values.pop("kind")), values.pop("key")
    return GuardStep(kind=kind, key=None if key is None else (int(key[0]), int(key[1])), **values)

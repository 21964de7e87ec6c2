"""Ends of attempts that the controller has not acknowledged, one small file each.

Owns `<work_dir>/reports` and the lock of the work directory. The rules kept: an end is in the spool
before it is sent and stays until it is acknowledged, so a crash of the agent loses none; one agent
per work directory.

A file is written beside its name and moved onto it, so it is whole or not there. It is not synced:
it outlives the agent, not the machine, whose end the controller notices by itself.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from dataclasses import fields
from pathlib import Path

from agent.attempt import Ended, Key, OomCause, Outcome

LOG = logging.getLogger(__name__)

FILE_BYTES_MAX = 65_536
_OUTCOME_FIELDS = tuple(field.name for field in fields(Outcome))


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
        self._prefix = f"{self._directory}/"
        self._kept: set[Key] = set()

    def load(self) -> list[tuple[Key, Ended]]:
        """Return the ends of an earlier life, in the order of task and attempt.

        A file that cannot be understood is set aside as NAME.bad and logged: its attempt will be
        unknown to this agent, and the controller treats it as lost.
        """
        ends = []
        for path in self._directory.iterdir():
            if path.suffix == ".new":
                path.unlink()  # a crash between writing and moving: the end was never sent
                continue
            if path.suffix != ".json":
                continue
            try:
                ends.append(_decode(path))
            except (OSError, ValueError, KeyError, TypeError) as error:
                LOG.error("report set aside file=%s reason=%r", path, error)
                path.rename(path.with_suffix(".bad"))
        self._kept.update(key for key, _ in ends)
        return sorted(ends, key=lambda end: end[0])

    def save(self, key: Key, ended: Ended) -> None:
        """Keep an end until `remove`. Raises OSError when the disk refuses."""
        path = self._path(key)
        descriptor = os.open(
            path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
        )
        try:
            os.write(descriptor, _encode(ended))
        finally:
            os.close(descriptor)
        os.rename(path + ".new", path)
        self._kept.add(key)

    def remove(self, key: Key) -> None:
        """Let go of an end; one that was never kept is no matter."""
        if key in self._kept:
            self._kept.discard(key)
            os.unlink(self._path(key))

    def close(self) -> None:
        """Give the work directory back."""
        os.close(self._lock)

    def _path(self, key: Key) -> str:
        return f"{self._prefix}{key[0]}.{key[1]}.json"


def _encode(ended: Ended) -> bytes:
    outcome = ended.outcome
    values = {name: getattr(outcome, name) for name in _OUTCOME_FIELDS} | {
        "oom_cause": ended.oom_cause.value,
        "timed_out": ended.timed_out,
        "stopped": ended.stopped,
    }
    return json.dumps(values).encode()


def _decode(path: Path) -> tuple[Key, Ended]:
    task_id, attempt = path.stem.split(".")
    if path.stat().st_size > FILE_BYTES_MAX:
        raise ValueError(f"more than {FILE_BYTES_MAX} bytes")
    values = json.loads(path.read_bytes())
    cause = OomCause(values.pop("oom_cause"))
    timed_out, stopped = bool(values.pop("timed_out")), bool(values.pop("stopped"))
    return (int(task_id), int(attempt)), Ended(Outcome(**values), cause, timed_out, stopped)

"""The store in one SQLite file: the default, for a single controller.

One thread writes, another reads on a connection of its own, so that neither waits for the other;
the loop waits for neither. Only a small commit is made on the loop itself while the disk is quick:
handing it to the thread and back takes longer than making it. Durable means synced: WAL with
synchronous = FULL.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TypeVar

from controller.core.commands import Save
from controller.core.limits import DEFAULT_LIMITS, MIB, Limits
from controller.core.model import Attempt, OutputStream, Task, TaskState
from controller.store.base import Stored, StoreError, TaskFilter
from controller.store.connection import check_library, connect, copy_to, errors_named
from controller.store.directory import DataDirectory
from controller.store.schema import prepare
from controller.store.sqlite_reader import ID_MAX, Reader
from controller.store.sqlite_writer import Writer
from controller.store.thread import StoreThread

# A commit that comes while a batch is under way waits for it: 2 ms with full outputs, 10 at most.
PRUNED_TASKS_PER_TRANSACTION = 100
PRUNED_SUBMISSIONS_PER_TRANSACTION = 1_000
# What the log may keep of the disk after a burst; it is cut back when it is next reset.
_LOG_BYTES_MAX = 64 * MIB

# The loop waits for a commit of its own, so it makes none that could take it long.
LOOP_SAVES_MAX = 64
LOOP_COMMIT_S_MAX = 0.005

_Result = TypeVar("_Result")


class SqliteStore:
    """A Store in the file `mass.db` of a data directory, which it holds until it is closed."""

    def __init__(
        self,
        directory: DataDirectory,
        connections: tuple[sqlite3.Connection, sqlite3.Connection],
        limits: Limits,
    ) -> None:
        """Take over an open directory and its connections; `open` makes them."""
        self.path = directory.database
        self._directory = directory
        self._connections = connections
        self._limits = limits
        writing, reading = connections
        self._reader = Reader(reading)
        self._writer = Writer(
            writing, self._reader.next_task_id() - 1, self._reader.next_reservation_id() - 1
        )
        self._write_thread = StoreThread("mass-store-write")
        self._read_thread = StoreThread("mass-store-read")
        self._commit_s = 0.0  # what commits take lately

    @classmethod
    def open(cls, directory: Path, limits: Limits = DEFAULT_LIMITS) -> SqliteStore:
        """Claim a data directory and open its store, which is made when there is none.

        Blocks for some milliseconds; meant for a controller's start.

        Raises:
            StoreBusy: another process holds the directory.
            StoreOutdated: an older version wrote the store.
            StoreTooNew: a newer version wrote the store.
            StoreDamaged: what is there is not a store of MASS.
            StoreError: the directory cannot be used, or SQLite itself is too old.
        """
        check_library()
        with ExitStack() as undo:
            claim = DataDirectory(directory)
            undo.callback(claim.release)
            claim.make_database_private()
            with errors_named(claim.database):
                writing = undo.enter_context(closing(connect(claim.database)))
                prepare(writing, claim.database)
                _tune(writing, claim.database)
                reading = undo.enter_context(closing(connect(claim.database, read_only=True)))
                store = cls(claim, (writing, reading), limits)
            undo.pop_all()
            return store

    async def load(self) -> Stored:
        """Return what the core starts from."""
        return await self._read(partial(self._reader.load, self._limits))

    async def commit(self, saves: Sequence[Save]) -> None:
        """Keep all of a turn's saves, durably, or none; nothing to save costs nothing."""
        if not saves:
            return
        commit = partial(self._commit, saves)
        quick = len(saves) <= LOOP_SAVES_MAX and self._commit_s <= LOOP_COMMIT_S_MAX
        if quick and self._write_thread.is_idle:
            _named(self.path, commit)
        else:
            await self._write(commit)

    def _commit(self, saves: Sequence[Save]) -> None:
        """Commit, and learn how long that takes here; one thread at a time comes here."""
        began_s = time.monotonic()
        try:
            self._writer.commit(saves)
        finally:
            self._commit_s += (time.monotonic() - began_s - self._commit_s) / 8

    async def task(self, task_id: int) -> Task | None:
        """Return a task, open or ended."""
        tasks = await self._read(partial(self._reader.tasks_by_id, (task_id,)))
        return tasks[0] if tasks else None

    async def tasks(self, *, before_id: int | None, limit: int, wanted: TaskFilter) -> list[Task]:
        """Return a page of tasks, newest first."""
        assert limit > 0
        before = ID_MAX if before_id is None else before_id
        return await self._read(partial(self._reader.tasks, before, limit, wanted))

    async def array_task_ids(self, array_id: int, index: int | None = None) -> list[int]:
        """Return the ids of an array's elements, or of the one with that index."""
        return await self._read(partial(self._reader.array_task_ids, array_id, index))

    async def ended_states(self, thing_ids: Collection[int]) -> dict[int, frozenset[TaskState]]:
        """Return how the tasks, and the elements of the arrays, with these ids have ended."""
        return await self._read(partial(self._reader.ended_states, thing_ids))

    async def tasks_by_id(self, task_ids: Collection[int]) -> dict[int, Task]:
        """Return those of the named tasks that are known."""
        tasks = await self._read(partial(self._reader.tasks_by_id, task_ids))
        return {task.id: task for task in tasks}

    async def task_ids_known(self, task_ids: Collection[int]) -> set[int]:
        """Return those of the ids that are a task's."""
        return await self._read(partial(self._reader.task_ids_known, task_ids))

    async def attempts(self, task_id: int) -> list[Attempt]:
        """Return a task's ended attempts by number."""
        return await self._read(partial(self._reader.attempts, task_id))

    async def output(self, task_id: int, attempt: int, stream: OutputStream) -> bytes | None:
        """Return the kept end of an ended attempt's output."""
        return await self._read(partial(self._reader.output, task_id, attempt, stream))

    async def prune(self, ended_before_ns: int, tasks_max: int) -> int:
        """Forget old ended tasks and submissions in small transactions; return how many tasks."""
        assert tasks_max >= 0
        below = await self._read(partial(self._reader.prune_bound, ended_before_ns, tasks_max))
        ids = partial(self._reader.ended_task_ids, below, PRUNED_TASKS_PER_TRANSACTION)
        pruned = 0
        while batch := await self._read(ids):
            pruned += await self._write(partial(self._writer.delete_tasks, batch))
        submissions = partial(
            self._writer.delete_submissions,
            self._limits.submissions_kept,
            PRUNED_SUBMISSIONS_PER_TRANSACTION,
        )
        while await self._write(submissions) == PRUNED_SUBMISSIONS_PER_TRANSACTION:
            pass
        return pruned

    async def backup(self, path: Path) -> None:
        """Write a consistent copy of the store to a new file; commits and reads go on."""
        await asyncio.to_thread(self._backup, path)

    def _backup(self, path: Path) -> None:
        with errors_named(self.path), closing(connect(self.path, read_only=True)) as connection:
            copy_to(connection, path)

    async def close(self) -> None:
        """Finish what was asked, then let go of the file and the directory."""
        await self._write_thread.stop()
        await self._read_thread.stop()
        # The writer's last: it then folds the log into the file.
        for connection in reversed(self._connections):
            connection.close()
        self._directory.release()

    async def _write(self, call: Callable[[], _Result]) -> _Result:
        return await self._write_thread.run(partial(_named, self.path, call))

    async def _read(self, call: Callable[[], _Result]) -> _Result:
        return await self._read_thread.run(partial(_named, self.path, call))


def _named(path: Path, call: Callable[[], _Result]) -> _Result:
    with errors_named(path):
        return call()


def _tune(connection: sqlite3.Connection, path: Path) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreError(f"{path} lies where SQLite cannot keep a WAL, but a {mode} journal")
    connection.execute("PRAGMA synchronous = FULL")
    # Some builds overwrite what is deleted, which makes pruning write as much as it frees.
    connection.execute("PRAGMA secure_delete = FAST")
    connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES_MAX}")

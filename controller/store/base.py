"""What every store promises: one protocol, the value it loads, and its errors.

A commit is one transaction: when it returns, all of it is durable; when it raises, none of it is
there. Bytes and nanoseconds throughout.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from controller.core.commands import Save
from controller.core.errors import MassError
from controller.core.model import (
    Alert,
    Attempt,
    MemoryReservation,
    Node,
    OutputStream,
    Submission,
    Task,
    TaskState,
)

# A task has fewer attempts than this unless nodes are lost under it again and again.
ATTEMPTS_READ_MAX = 1_000


class StoreError(MassError):
    """The store cannot do what was asked; what was committed before is kept."""

    reason = "STORE_FAILED"


class StoreBusy(StoreError):
    """Another process holds the store; end it, or use another data directory."""

    reason = "STORE_BUSY"


class StoreOutdated(StoreError):
    """An older version wrote the store; run `mass db upgrade`."""

    reason = "STORE_OUTDATED"


class StoreTooNew(StoreError):
    """A newer version wrote the store; install that version."""

    reason = "STORE_TOO_NEW"


class StoreDamaged(StoreError):
    """What is there is no store of MASS, or cannot be read; restore a backup."""

    reason = "STORE_DAMAGED"


class StoreFull(StoreError):
    """There is no room to write; nothing of the commit is kept, so it may be repeated."""

    reason = "STORE_FULL"


@dataclass(frozen=True, slots=True)
class Stored:
    """Everything the core needs at its start."""

    tasks: tuple[Task, ...]  # all that have not ended, by id
    nodes: tuple[Node, ...]  # by id
    alerts: tuple[Alert, ...]  # all that are not INACTIVE, by name, node and task
    submissions: tuple[Submission, ...]  # the newest Limits.submissions_kept, oldest first
    next_task_id: int  # above every id that was ever committed, also of pruned tasks
    reservations: tuple[MemoryReservation, ...] = ()  # by id
    next_reservation_id: int = 1  # above every id that was ever committed
    # The latest Limits.category_attempts_max of each category, of at most Limits.categories_max
    # categories (those that ended last), in the order in which they ended.
    attempts: tuple[Attempt, ...] = ()
    cluster_id: str = ""  # drawn when the store was made; a copy of it keeps it


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks a list shows; what is left empty lets all through."""

    states: frozenset[TaskState] = frozenset()
    name: str = ""
    user: str = ""
    since_ns: int = 0  # submitted at or after this instant
    array_id: int = 0


class Store(Protocol):
    """Remembers tasks, attempts, outputs, nodes, alerts and submissions.

    Every method raises StoreError (or one of its kinds) when the store cannot be used, and
    LimitReached when too many calls wait for it already.
    """

    async def load(self) -> Stored:
        """Return what the core starts from."""

    async def commit(self, saves: Sequence[Save]) -> None:
        """Keep all of a turn's saves, durably, or none.

        The last value of each task, attempt, output, node, reservation, alert and submission
        wins. Of a task,
        `spec`, `user` and `submitted_at_ns` are kept from its first save. A caller that is
        cancelled while it waits does not know whether the commit happened.

        Raises:
            StoreFull: there is no room; the same commit may be repeated.
            StoreError: also for an attempt or an output of a task that was never saved.
        """

    async def task(self, task_id: int) -> Task | None:
        """Return a task, open or ended; None when there is none or it was pruned."""

    async def tasks(self, *, before_id: int | None, limit: int, wanted: TaskFilter) -> list[Task]:
        """Return at most `limit` tasks with ids below `before_id`, newest first.

        Only those that pass the filter. `limit` is at least 1.
        """

    async def array_task_ids(self, array_id: int, index: int | None = None) -> list[int]:
        """Return the ids of an array's elements by id, or only of the one with that index."""

    async def ended_states(self, thing_ids: Collection[int]) -> dict[int, frozenset[TaskState]]:
        """Return how the tasks, and the elements of the arrays, with these ids have ended.

        Each id is there; its set is empty while nothing of it has ended, or when it was pruned.
        """

    async def tasks_by_id(self, task_ids: Collection[int]) -> dict[int, Task]:
        """Return those of the named tasks that are known."""

    async def task_ids_known(self, task_ids: Collection[int]) -> set[int]:
        """Return those of the ids that are a task's; cheaper than their tasks."""

    async def attempts(self, task_id: int) -> list[Attempt]:
        """Return a task's ended attempts by number, the last ATTEMPTS_READ_MAX of them."""

    async def output(self, task_id: int, attempt: int, stream: OutputStream) -> bytes | None:
        """Return the kept end of an ended attempt's output; None when nothing was kept."""

    async def prune(self, ended_before_ns: int, tasks_max: int) -> int:
        """Forget ended tasks, with their attempts and outputs, and return how many.

        Forgotten are those that ended before `ended_before_ns`, and those that ended first
        beyond `tasks_max`; also submissions beyond Limits.submissions_kept. Open tasks are never
        touched. Works in small transactions, between which commits go on; one that fails leaves
        those before it done.
        """

    async def backup(self, path: Path) -> None:
        """Write a consistent copy of the store to `path`, which must not exist yet."""

    async def close(self) -> None:
        """Finish what was asked, then let go of everything; a second call does nothing."""

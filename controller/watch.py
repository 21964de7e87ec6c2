"""Who is told when a task changes. A watch holds at most one value of each task: the newest."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from controller.core.model import Task


class Watch:
    """The changes of some tasks that its owner has not seen yet."""

    def __init__(self, task_ids: frozenset[int]) -> None:
        self.task_ids = task_ids
        self._changed: dict[int, Task] = {}
        self._ready = asyncio.Event()

    def put(self, task: Task) -> None:
        """Note a change; an unseen older one of the same task is replaced."""
        self._changed[task.id] = task
        self._ready.set()

    async def next(self) -> list[Task]:
        """Return the changed tasks, waiting for at least one."""
        await self._ready.wait()
        self._ready.clear()
        changed, self._changed = self._changed, {}
        return list(changed.values())


class Watches:
    """All watches, found by the tasks they are about."""

    def __init__(self) -> None:
        self._by_task: dict[int, list[Watch]] = {}

    def open(self, task_ids: Iterable[int]) -> Watch:
        """Return a new watch on these tasks; close it."""
        watch = Watch(frozenset(task_ids))
        for task_id in watch.task_ids:
            self._by_task.setdefault(task_id, []).append(watch)
        return watch

    def close(self, watch: Watch) -> None:
        """Forget a watch."""
        for task_id in watch.task_ids:
            watches = self._by_task.get(task_id)
            if watches is not None and watch in watches:
                watches.remove(watch)
                if not watches:
                    del self._by_task[task_id]

    def changed(self, task: Task) -> None:
        """Tell whoever watches the task."""
        for watch in self._by_task.get(task.id, ()):
            watch.put(task)

"""Which tasks wait for the end of which others, and what an end means for them.

What is waited for is a task or an array; of an array every element counts. Bounded by the open
tasks and `dependencies_max` of each.
"""

from __future__ import annotations

from collections.abc import Iterable

from controller.core.model import Dependency, DependencyKind, TaskState


def fulfils(kind: DependencyKind, state: TaskState) -> bool:
    """Say whether an end in this state is what a dependency of this kind waits for."""
    if kind is DependencyKind.ANY:
        return True
    return (state is TaskState.SUCCEEDED) is (kind is DependencyKind.OK)


class Dependencies:
    """Waiting tasks by what they wait for. Dictionaries keep the order of arrival."""

    def __init__(self) -> None:
        self._waiters: dict[int, dict[DependencyKind, dict[int, None]]] = {}
        self._unmet: dict[int, int] = {}  # by the waiting task

    def __contains__(self, task_id: int) -> bool:
        """Say whether the task waits for another."""
        return task_id in self._unmet

    def __len__(self) -> int:
        return len(self._unmet)

    def add(self, task_id: int, unmet: Iterable[Dependency]) -> None:
        """Have a task wait for these, none of which may be named twice."""
        count = 0
        for dependency in unmet:
            kinds = self._waiters.setdefault(dependency.task_id, {})
            kinds.setdefault(dependency.kind, {})[task_id] = None
            count += 1
        if count:
            self._unmet[task_id] = count

    def remove(self, task_id: int, after: Iterable[Dependency]) -> None:
        """Forget a task that has ended before it could start; one that waits for none is no error.

        `after` are all its dependencies.
        """
        if self._unmet.pop(task_id, None) is None:
            return
        for dependency in after:
            kinds = self._waiters.get(dependency.task_id, {})
            kinds.get(dependency.kind, {}).pop(task_id, None)
            if kinds and not any(kinds.values()):
                del self._waiters[dependency.task_id]

    def waits_for(self, task_id: int, after: Iterable[Dependency]) -> list[int]:
        """Return which of a task's dependencies are not met yet."""
        return [
            dependency.task_id
            for dependency in after
            if task_id in self._waiters.get(dependency.task_id, {}).get(dependency.kind, {})
        ]

    def disappointed(self, thing_id: int, state: TaskState) -> list[int]:
        """Return the tasks that can never start now that this task or element ended so."""
        return [
            task_id
            for kind, waiting in self._waiters.get(thing_id, {}).items()
            if not fulfils(kind, state)
            for task_id in waiting
        ]

    def complete(self, thing_id: int) -> list[int]:
        """Note that a task, or a whole array, has ended as was hoped; return who may start now."""
        ready = []
        for waiting in self._waiters.pop(thing_id, {}).values():
            for task_id in waiting:
                self._unmet[task_id] -= 1
                if not self._unmet[task_id]:
                    del self._unmet[task_id]
                    ready.append(task_id)
        return ready

    def check(self) -> None:
        """Assert that the counts are those of the lists."""
        counts: dict[int, int] = {}
        for kinds in self._waiters.values():
            assert any(kinds.values()), "nobody waits for it"
            for waiting in kinds.values():
                for task_id in waiting:
                    counts[task_id] = counts.get(task_id, 0) + 1
        assert counts == self._unmet

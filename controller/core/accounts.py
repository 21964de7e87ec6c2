"""What each user has placed now: the measure of fair share, and of the bound for one user."""

from __future__ import annotations

from dataclasses import dataclass

from controller.core.model import Task


@dataclass(slots=True)
class Account:
    """What one user's placed tasks take."""

    task_count: int = 0
    memory_bytes: int = 0  # what was set aside at their starts


class Accounts:
    """The accounts of users with placed tasks."""

    def __init__(self) -> None:
        self._by_user: dict[str, Account] = {}

    def add(self, task: Task) -> None:
        """Count a task that was placed."""
        account = self._by_user.setdefault(task.user, Account())
        account.task_count += 1
        account.memory_bytes += task.memory_size_bytes

    def remove(self, task: Task) -> None:
        """Count a task off that is not placed any more."""
        account = self._by_user[task.user]
        account.task_count -= 1
        account.memory_bytes -= task.memory_size_bytes
        if not account.task_count:
            del self._by_user[task.user]

    def task_counts(self) -> dict[str, int]:
        """Return how many tasks each user has placed."""
        return {user: account.task_count for user, account in self._by_user.items()}

    def memory_bytes(self) -> dict[str, int]:
        """Return how much memory was set aside for each user's placed tasks at their starts."""
        return {user: account.memory_bytes for user, account in self._by_user.items()}

"""What each user has placed now, and took lately: the measures of fair share.

What a user took lately is the mean of what his placed tasks take, over the time that has passed
with a weight that halves with each half-life. It is in bytes, as what is placed now is: whoever
has had 4 GiB for long has a mean of 4 GiB, and of 2 GiB one half-life after he stopped. Means are
not saved: after a restart of the controller they begin anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from controller.core.model import Task


@dataclass(slots=True)
class Account:
    """What one user's placed tasks take."""

    task_count: int = 0
    memory_bytes: int = 0  # what was set aside at their starts


USERS_KEPT_MAX = 1_000  # with a mean; beyond it those with the least are forgotten
MEAN_MIN_BYTES = 1 << 10  # below it a mean is forgotten
STEP_MIN_NS = 1_000_000_000  # a mean over less than this moves too little to be worked out


class Accounts:
    """The accounts of users with placed tasks, and the means of those who had some lately."""

    def __init__(self) -> None:
        self._by_user: dict[str, Account] = {}
        self._means: dict[str, float] = {}  # bytes
        self._taken: dict[str, int] = {}  # the most bytes since the means were worked out
        self._advanced_at_ns = 0

    def add(self, task: Task) -> None:
        """Count a task that was placed."""
        account = self._by_user.setdefault(task.user, Account())
        account.task_count += 1
        account.memory_bytes += task.memory_size_bytes
        taken = self._taken.get(task.user, 0)
        self._taken[task.user] = max(taken, account.memory_bytes)

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

    def advance(self, now_ns: int, half_life_ns: int) -> None:
        """Bring the means up to an instant; what was placed since the last one counts for all of
        the time between, which is no longer than the gap between two cycles.

        A half-life of 0 keeps no means. Cost: one pass over the users that have one.
        """
        if not half_life_ns:
            self._means.clear()
        step_ns = now_ns - self._advanced_at_ns
        if step_ns < STEP_MIN_NS:
            return
        first, self._advanced_at_ns = not self._advanced_at_ns, now_ns
        taken = self._taken
        self._taken = {user: account.memory_bytes for user, account in self._by_user.items()}
        if first or not half_life_ns:
            return
        kept: float = 0.5 ** (step_ns / half_life_ns)
        means: dict[str, float] = {}
        for user in sorted(self._means.keys() | taken.keys()):
            mean = self._means.get(user, 0.0) * kept + taken.get(user, 0) * (1.0 - kept)
            if mean >= MEAN_MIN_BYTES or user in self._by_user:
                means[user] = mean
        if len(means) > USERS_KEPT_MAX:
            largest = sorted(means, key=lambda user: (-means[user], user))[:USERS_KEPT_MAX]
            means = {user: means[user] for user in largest}
        self._means = means

    def shares(self) -> dict[str, int]:
        """Return by user what counts in fair share: bytes placed now and taken lately."""
        users = sorted(self._means.keys() | self._by_user.keys())
        return {user: self._placed_bytes(user) + int(self._means.get(user, 0.0)) for user in users}

    def _placed_bytes(self, user: str) -> int:
        account = self._by_user.get(user)
        return 0 if account is None else account.memory_bytes

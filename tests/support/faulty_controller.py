"""A controller that dies by SIGKILL at one exact moment: after a commit, before any word of it.

The moment is named by MASS_FAULT and is what the commit holds: `submission`, `assignment`,
`started` or `ended` (reports of an attempt), or `cancel`. The file MASS_FAULT_MARK is made first;
where it is there already, nothing happens, so the next controller lives. Everything else is the
controller as it is.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import controller.main
from controller.cli import main
from controller.core.commands import Save, SaveAttempt, SaveSubmission, SaveTask
from controller.core.model import TaskState
from controller.store.sqlite import SqliteStore


def _has_state(save: Save, state: TaskState) -> bool:
    return isinstance(save, SaveTask) and save.task.state is state


MOMENTS: dict[str, Callable[[Save], bool]] = {
    "submission": lambda save: isinstance(save, SaveSubmission),
    "assignment": lambda save: _has_state(save, TaskState.ASSIGNED),
    "started": lambda save: _has_state(save, TaskState.RUNNING),
    "ended": lambda save: isinstance(save, SaveAttempt),
    "cancel": lambda save: _has_state(save, TaskState.STOPPING),
}


class FaultyStore(SqliteStore):
    """Commits, and then ends the process without a word to anyone."""

    async def commit(self, saves: Sequence[Save]) -> None:
        """Commit, and die when the saves hold what MASS_FAULT names."""
        await super().commit(saves)
        mark = Path(os.environ["MASS_FAULT_MARK"])
        if any(MOMENTS[os.environ["MASS_FAULT"]](save) for save in saves) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    controller.main.SqliteStore = FaultyStore  # type: ignore[attr-defined]
    main()

"""Child processes held by a pidfd: signalled, waited for and collected without meaning another."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended; both None when someone else collected the status."""

    exit_code: int | None
    signal: int | None


@dataclass(slots=True)
class ChildProcess:
    """A child of this process, held by a pidfd so that its pid can never mean another process."""

    pid: int
    pidfd: int = field(init=False)
    _callback: Callable[[], None] | None = field(init=False, default=None)
    _watched_by: asyncio.AbstractEventLoop | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.pidfd = os.pidfd_open(self.pid)

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call back once from the running loop when the process has ended, in place of another."""
        self._callback = callback
        if self._watched_by is None:
            self._watched_by = asyncio.get_running_loop()
            self._watched_by.add_reader(self.pidfd, self._ended)

    def forget_end(self) -> None:
        """Withdraw on_end. The loop goes on looking: the next on_end most often follows soon."""
        self._callback = None

    def _ended(self) -> None:
        self._unwatch()
        callback, self._callback = self._callback, None
        if callback is not None:  # else whoever asks next is told at once
            callback()

    def _unwatch(self) -> None:
        if self._watched_by is not None:
            self._watched_by.remove_reader(self.pidfd)
            self._watched_by = None

    def send_signal(self, number: int) -> None:
        """Signal this very process; nothing happens when it has already ended."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return  # ended: what the caller wanted, or too late for it

    def collect(self) -> ExitStatus:
        """Collect the status of the ended process and let go of it; to be called once."""
        self._unwatch()
        try:
            result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        except ChildProcessError:
            result = None
        finally:
            os.close(self.pidfd)
        if result is None:
            return ExitStatus(None, None)
        if result.si_code == os.CLD_EXITED:
            return ExitStatus(result.si_status, None)
        return ExitStatus(None, result.si_status)


def adopt(pid: int) -> ChildProcess:
    """Return the child; one that cannot be held by a pidfd is ended and collected."""
    try:
        return ChildProcess(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)  # not collected yet, so the pid is still its own
        os.waitpid(pid, 0)
        raise

"""Owns the processes that `mass dev` starts: their logs, their end.

The rule: no child outlives the command. Each is in a process group of its own, so that Ctrl-C in a
terminal reaches only the command, which then ends them in order.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from controller.core.errors import MassError

# An agent gives its tasks 10 s to end, and a little longer to report it.
STOP_SECONDS = 15.0
LOG_LINES_SHOWN = 10
LOG_BYTES_READ = 16 << 10
LOG_BYTES_MAX = 64 << 20  # an older log above this is begun anew at the next start


class ChildDied(MassError):
    """A process that was started has ended by itself."""

    reason = "CHILD_DIED"


class Child:
    """One process and its log file, to which each start adds."""

    def __init__(self, name: str, arguments: Sequence[str], log_path: Path) -> None:
        self.name = name
        self.log_path = log_path
        # Adding, not replacing: the directory may turn out to be in use by another one's child.
        is_full = log_path.exists() and log_path.stat().st_size > LOG_BYTES_MAX
        with log_path.open("wb" if is_full else "ab") as log:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def check(self) -> None:
        """Return while it lives.

        Raises:
            ChildDied: it has ended; the message shows the last lines of its log.
        """
        code = self._process.poll()
        if code is None:
            return
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        raise ChildDied(
            f"the {self.name} {how}; the end of its log {self.log_path}:\n{self._log_end()}",
            child=self.name,
            code=code,
        )

    def terminate(self) -> None:
        """Ask it to end; nothing happens when it has ended."""
        self._process.terminate()

    def wait(self, stop: StopSignals) -> bool:
        """Wait for its end; kill it after 15 s, or at once when the user asks for the second time.

        Returns whether it ended without being killed. The waiting is in steps of a tenth of a
        second, so that the user is heard.
        """
        for _ in range(int(STOP_SECONDS * 10)):
            try:
                self._process.wait(0.1)
                return True
            except subprocess.TimeoutExpired:
                if stop.count > 1:
                    break
        self._process.kill()
        self._process.wait()
        return False

    def _log_end(self) -> str:
        with self.log_path.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - LOG_BYTES_READ))
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-LOG_LINES_SHOWN:]) or "  (it is empty)"


class StopSignals:
    """Counts how often the user has asked to stop, by Ctrl-C, SIGTERM or a closed terminal."""

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.count = 0
        # Of all queues only this one may be put into by a signal handler.
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()

    def ask(self) -> None:
        """Count one more request."""
        self.count += 1
        self._asked.put(None)

    def wait(self, seconds: float) -> bool:
        """Wait for a request, at most so long; return whether there was ever one."""
        if self.count == 0:
            with suppress(queue.Empty):
                self._asked.get(timeout=seconds)
        return self.count > 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to the signals in this block; only the main thread can."""
        previous = {
            number: signal.signal(number, lambda _number, _frame: self.ask())
            for number in self.NUMBERS
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

"""How far tasks are that somebody waits for, and how long it will still take: one line on stderr.

On a terminal the line stays in its place; anywhere else a new one comes now and then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TextIO

from mass.v1 import types_pb2

from controller.cli.records import ENDED_STATES
from controller.cli.units import format_duration

BETWEEN_SHOWS_SECONDS = 0.2
BETWEEN_LINES_SECONDS = 5.0  # where it is no terminal


class Progress:
    """The line of one wait. Time left is told from the ends since it began."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._terminal = stream.isatty()
        self._began = clock()
        self._ended_before: int | None = None  # when it began
        self._shown_at = self._began
        self._shown = False

    def show(self, tasks: Mapping[str, types_pb2.Task]) -> None:
        """Show how far these tasks are, unless that was shown a moment ago."""
        now = self._clock()
        gap = BETWEEN_SHOWS_SECONDS if self._terminal else BETWEEN_LINES_SECONDS
        if now - self._shown_at < gap:
            return
        self._shown_at = now
        line = self.line(tasks, now)
        self._stream.write(f"\r{line}\x1b[K" if self._terminal else f"{line}\n")
        self._stream.flush()
        self._shown = True

    def line(self, tasks: Mapping[str, types_pb2.Task], now: float) -> str:
        """Return the line."""
        ended = sum(1 for task in tasks.values() if task.state in ENDED_STATES)
        running = sum(1 for t in tasks.values() if t.state == types_pb2.TASK_STATE_RUNNING)
        if self._ended_before is None:
            # Those known at the first look may have ended at any time before.
            self._ended_before, self._began = ended, now
        line = f"{ended} of {len(tasks)} ended, {running} running"
        done = ended - self._ended_before
        if done > 0 and ended < len(tasks):
            left = (now - self._began) / done * (len(tasks) - ended)
            line += f", about {format_duration(left)} left"
        return line

    def clear(self) -> None:
        """Take the line away from the terminal, so that something else can be printed."""
        if self._shown and self._terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False

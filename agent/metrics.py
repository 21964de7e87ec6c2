"""Metrics of one's own: what commands print and what text files of the node exporter's format say.

Owns the present value of each. The rules kept: nothing waits for a command, a task least of all;
a value that was not measured in its last round is absent; every bound below holds whatever a
command or a file does.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import signal
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mass.units import size_words

LOG = logging.getLogger(__name__)

METRICS_MAX = 32
NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,62}")
VALUE_MAX = 1e30  # the controller refuses larger ones
SECOND_NS = 1_000_000_000
INTERVAL_DEFAULT_NS = SECOND_NS
TIMEOUT_SECONDS = 5.0
OUTPUT_BYTES_MAX = 64 << 10
COMMANDS_AT_ONCE = 4
FILES_MAX = 64
FILE_BYTES_MAX = 1 << 20
FILE_AGE_MAX_NS = 300 * SECOND_NS  # whoever writes it has stopped

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.])")
_SPECIAL = {"NaN": math.nan, "+Inf": math.inf, "Inf": math.inf, "-Inf": -math.inf}


@dataclass(frozen=True, slots=True)
class MetricCommand:
    """A metric and the shell command whose output it is read from."""

    name: str
    command: str


class NotMeasured(Exception):
    """A round gave no number; the message says why."""


class OwnMetrics:
    """Measures again and again while `run` runs; `values` is what the last rounds gave."""

    def __init__(
        self,
        commands: tuple[MetricCommand, ...] = (),
        directory: Path | None = None,
        interval_ns: int = INTERVAL_DEFAULT_NS,
    ) -> None:
        """At most METRICS_MAX commands; of the directory's metrics, the first ones that remain."""
        assert len(commands) <= METRICS_MAX
        self._commands = commands
        self._directory = directory
        self._interval_seconds = interval_ns / SECOND_NS
        self._turns = asyncio.Semaphore(COMMANDS_AT_ONCE)
        self._of_commands: dict[str, float] = {}
        self._of_files: dict[str, float] = {}
        self._files: dict[str, tuple[int, dict[str, float]]] = {}  # by name: mtime and content
        self._told: dict[str, str] = {}  # the trouble that was logged last, by metric or file
        self._values: Mapping[str, float] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics of the commands."""
        return tuple(command.name for command in self._commands)

    def values(self) -> Mapping[str, float]:
        """Return the present values, at most METRICS_MAX; the mapping never changes afterwards."""
        return self._values

    async def run(self) -> None:
        """Measure until cancelled. Commands that still run then are killed."""
        async with asyncio.TaskGroup() as group:
            for command in self._commands:
                group.create_task(self._repeat(command))
            if self._directory is not None:
                group.create_task(self._look(self._directory))
            group.create_task(asyncio.Event().wait())  # without metrics it only waits

    async def _repeat(self, command: MetricCommand) -> None:
        while True:
            begun = time.monotonic()
            try:
                async with self._turns:
                    value = await measure(command.command)
            except NotMeasured as error:
                self._of_commands.pop(command.name, None)
                self._tell(command.name, str(error))
            else:
                self._of_commands[command.name] = value
                self._tell(command.name, "")
            self._publish()
            spent = time.monotonic() - begun
            await asyncio.sleep(max(0.0, self._interval_seconds - spent))

    async def _look(self, directory: Path) -> None:
        while True:
            # Files may be large or on a slow disk, and samples must not wait for them.
            self._of_files, troubles = await asyncio.to_thread(self._read_files, directory)
            for thing in [thing for thing in self._told if thing not in self.names]:
                troubles.setdefault(thing, "")
            for thing, trouble in troubles.items():
                self._tell(thing, trouble)
            self._publish()
            await asyncio.sleep(self._interval_seconds)

    def _publish(self) -> None:
        found = dict(self._of_commands)
        for name in sorted(self._of_files):
            if len(found) == METRICS_MAX:
                break
            found.setdefault(name, self._of_files[name])
        self._values = found

    def _tell(self, thing: str, trouble: str) -> None:
        """Log what has changed: one line when trouble begins or is another, one when it ends."""
        before = self._told.pop(thing, "")
        if trouble:
            self._told[thing] = trouble
        if trouble and trouble != before:
            LOG.warning("metric not measured metric=%s reason=%r", thing, trouble)
        elif before and not trouble:
            LOG.info("metric measured again metric=%s", thing)

    def _read_files(self, directory: Path) -> tuple[dict[str, float], dict[str, str]]:
        """Return the metrics of all fresh files, the first file's by name, and the troubles."""
        try:
            with os.scandir(directory) as entries:
                paths = sorted(Path(e.path) for e in entries if e.name.endswith(".prom"))
        except OSError as error:
            return {}, {str(directory): error.strerror or str(error)}
        troubles: dict[str, str] = {}
        if len(paths) > FILES_MAX:
            troubles[str(directory)] = f"{len(paths)} files, {FILES_MAX} are read"
        found: dict[str, float] = {}
        kept: dict[str, tuple[int, dict[str, float]]] = {}
        for path in paths[:FILES_MAX]:
            try:
                kept[path.name] = self._read_file(path)
            except NotMeasured as error:
                troubles[str(path)] = str(error)
                continue
            for name, value in kept[path.name][1].items():
                found.setdefault(name, value)
        self._files = kept
        if len(self.names) + len(found.keys() - set(self.names)) > METRICS_MAX:
            troubles[str(directory)] = f"more than {METRICS_MAX} metrics, the others are left out"
        return found, troubles

    def _read_file(self, path: Path) -> tuple[int, dict[str, float]]:
        """Return when a file was written and what it says; read only when it was written anew."""
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise NotMeasured("no regular file")  # a pipe would be waited for without end
            if time.time_ns() - status.st_mtime_ns > FILE_AGE_MAX_NS:
                raise NotMeasured("not written for 5 minutes")
            before = self._files.get(path.name)
            if before is not None and before[0] == status.st_mtime_ns:
                return before
            with path.open("rb") as file:
                content = file.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            raise NotMeasured(error.strerror or str(error)) from None
        if len(content) > FILE_BYTES_MAX:
            raise NotMeasured(f"larger than {size_words(FILE_BYTES_MAX)}")
        return status.st_mtime_ns, dict(parse_text(content.decode(errors="replace")))


async def measure(command: str) -> float:
    """Return the last number on the first line that a shell command prints.

    Its whole process group is killed when it has not ended after TIMEOUT_SECONDS.

    Raises:
        NotMeasured: it failed, took too long, or printed no number.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise NotMeasured(f"it cannot be started: {error.strerror or error}") from None
    ended = False
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            output = await _read(process)
            code = await process.wait()
        ended = True
    except TimeoutError:
        raise NotMeasured(f"not ended after {TIMEOUT_SECONDS:g} s") from None
    finally:
        if not ended:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if code != 0:
        raise NotMeasured(f"exit code {code}" if code > 0 else f"signal {-code}")
    return last_number(output.decode(errors="replace"))


async def _read(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    output = b""
    while part := await process.stdout.read(OUTPUT_BYTES_MAX):
        output += part
        if len(output) > OUTPUT_BYTES_MAX:
            raise NotMeasured(f"it prints more than {size_words(OUTPUT_BYTES_MAX)}")
    return output


def last_number(output: str) -> float:
    """Return the last number on the first line. Raises NotMeasured."""
    line = output.split("\n", 1)[0]
    numbers = _NUMBER.findall(line)
    if not numbers:
        raise NotMeasured(f"no number on the first line {line[:80]!r}")
    value = float(numbers[-1])
    if not abs(value) < VALUE_MAX:
        raise NotMeasured(f"{numbers[-1][:40]} is beyond {VALUE_MAX:g}")
    return value


def parse_text(content: str) -> Iterator[tuple[str, float]]:
    """Yield the metrics of a text of the node exporter's format.

    Series with labels, values that are not finite, names that rules cannot say, and lines of
    another form are left out; a time stamp behind the value is ignored.
    """
    for line in content.splitlines():
        words = line.split()
        if not 2 <= len(words) <= 3 or not NAME.fullmatch(words[0]):
            continue
        try:
            value = _SPECIAL[words[1]] if words[1] in _SPECIAL else float(words[1])
        except ValueError:
            continue
        if abs(value) < VALUE_MAX:
            yield words[0], value

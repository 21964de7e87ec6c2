"""The kernel's group directories as files, for whichever version of cgroups.

Owns reading, writing, walking and ending groups below a directory. The rule kept: what somebody
else has removed meanwhile is no error, because the kernel lets only empty groups go.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from agent.group import EnforcementError
from agent.memory import KeptFile
from agent.proctree import Life, send_signal

READ_BYTES = 65_536
CHILDLESS_LINKS = 2  # of a directory without directories below; the kernel counts them here too
SWEEP_SECONDS_MAX = 10.0  # for one leftover; SIGKILL takes milliseconds unless a disk hangs
GONE = (errno.ENOENT, errno.ENODEV)  # the file of a group that was removed
SLOTS_TRIED_MAX = 1_000  # names skipped because a group of that name could not be removed


def name_prefix(node_name: str) -> str:
    """Return how the directories of this node's lives begin; the life follows."""
    return f"mass-{quote(node_name, safe='')}."


def make_slot(base: Path, number: int) -> tuple[int, str]:
    """Make the next free group below; return its number and name. Raises EnforcementError."""
    for _ in range(SLOTS_TRIED_MAX):
        number += 1
        name = f"slot-{number}"
        try:
            (base / name).mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            message = f"cannot make group {base / name}: {error.strerror}"
            raise EnforcementError(message) from error
        return number, name
    raise EnforcementError(f"{base}: {SLOTS_TRIED_MAX} groups cannot be reused")


def psi_full_percent(path: str | Path) -> float | None:
    """Return the avg10 of the line "full" of a pressure file, None where there is none."""
    try:
        content = read(path)
    except OSError:
        return None
    match = re.search(r"^full avg10=([0-9.]+)", content, re.MULTILINE)
    return float(match[1]) if match else None


def leftovers(root: Path, node_name: str) -> Iterator[Path]:
    """Yield the directories below that ended lives of this node have left."""
    pattern = re.compile(re.escape(name_prefix(node_name)) + r"(\d+-\d+)")
    for directory, names, _ in os.walk(root):
        for name in list(names):
            match = pattern.fullmatch(name)
            life = Life.parse(match[1]) if match else None
            if life is not None:
                names.remove(name)
                if life.is_over:
                    yield Path(directory, name)


def read_int(path: Path) -> int:
    """Return the number that is all of a file. Raises OSError, ValueError."""
    return int(read(path))


def read_pairs(path: Path) -> dict[str, int]:
    """Return a file of lines of a name and a number. Raises OSError."""
    lines = read(path).splitlines()
    return {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}


def read(path: str | Path) -> str:
    """Return the whole file. Raises OSError."""
    # As the kernel gives it, without a file object: these files are read with every task.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while part := os.read(descriptor, READ_BYTES):
            text += part
        return text.decode("ascii")
    finally:
        os.close(descriptor)


def write(path: Path, text: str) -> None:
    """Give the kernel one value. Raises OSError."""
    # One write of the whole value: the kernel takes each write as a complete command.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode("ascii"))
    finally:
        os.close(descriptor)


class GroupFile:
    """A file of a group that is read often.

    It is opened at the first reading and stays open: 20 us instead of 80. What a group that was
    removed says is nothing.
    """

    def __init__(self, path: Path, *names: str) -> None:
        """Prepare to read the file, which need not exist yet, and these names of its lines."""
        self._path = path
        self._keys = tuple(f"\n{name} ".encode("ascii") for name in names)
        self._file: KeptFile | None = None

    def read(self) -> bytes:
        """Return the content, empty when the group or the file is not there. Raises OSError."""
        try:
            if self._file is None:
                self._file = KeptFile(self._path)
            return self._file.read()
        except OSError as error:
            if error.errno not in GONE:
                raise
            return b""

    def number(self) -> int:
        """Return the number that is all of the file, 0 when there is none."""
        return int(self.read() or b"0")

    def numbers(self) -> tuple[int, ...]:
        """Return the numbers of the names, 0 for one that is not there."""
        content = b"\n" + self.read()
        return tuple(_number_after(content, key) for key in self._keys)

    def close(self) -> None:
        """Close the file; another reading would open it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _number_after(content: bytes, key: bytes) -> int:
    start = content.find(key)
    if start < 0:
        return 0
    start += len(key)
    return int(content[start : content.index(b"\n", start)])


def tree(path: Path) -> Iterator[Path]:
    """Yield the group and the groups a task made below it, deepest first."""
    try:
        childless = os.stat(path).st_nlink == CHILDLESS_LINKS
    except FileNotFoundError:
        return
    if childless:  # nearly always: a walk would look at each of the group's files
        yield path
        return
    for directory, _, _ in os.walk(path, topdown=False):
        yield Path(directory)


def processes(path: Path) -> set[int]:
    """Return who is in the group or in one that a task made below it."""
    pids: set[int] = set()
    for directory in tree(path):
        try:
            text = read(directory / "cgroup.procs")
        except OSError as error:
            if error.errno not in GONE:
                raise
            continue  # removed while we walked: nobody was in it
        pids.update(int(pid) for pid in text.split())
    pids.discard(0)  # a process of another pid namespace, which nobody here can signal
    return pids


def thaw_tree(path: Path) -> None:
    """Let everything below a leftover group go on, where it is a group that can be frozen.

    Its agent may have died in the middle of a kill, or with tasks paused.
    """
    for directory in tree(path):
        for file, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            if (directory / file).exists():
                write(directory / file, value)


def kill_tree(path: Path) -> None:
    """Kill everything below a leftover group, in whichever hierarchy it is."""
    deadline = time.monotonic() + SWEEP_SECONDS_MAX
    while True:
        thaw_tree(path)
        pids = processes(path)
        if not pids:
            return
        if time.monotonic() > deadline:
            raise EnforcementError(
                f"leftover group {path} still holds processes {sorted(pids)[:10]} "
                f"{SWEEP_SECONDS_MAX:g} s after SIGKILL"
            )
        send_signal(pids, signal.SIGKILL)
        time.sleep(0.005)


def remove_tree(path: Path) -> None:
    """Remove the empty group and those below it. Raises EnforcementError."""
    for directory in tree(path):
        remove_empty(directory)


def remove_empty(path: Path) -> None:
    """Remove the empty group. Raises EnforcementError when it is not empty."""
    try:
        path.rmdir()
    except FileNotFoundError:
        return  # gone already, as wanted
    except OSError as error:
        raise EnforcementError(f"cannot remove group {path}: {error.strerror}") from error

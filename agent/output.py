"""Keeps what an attempt prints: where the files are, how large they may grow, how they are read.

Owns the files `<work_dir>/tasks/<task_id>/<attempt>/stdout` and `stderr`. The rule kept: an offset
counts the bytes the task has written since its start, so it means the same byte before and after
the file was trimmed, for as long as that byte is kept.

Trimming drops the oldest part while the task goes on writing. A trimmed file begins with a line

    [mass: 52428800 bytes of older output dropped]

which stands in the place of some of the dropped bytes (padded with spaces up to a line's end).
Three ways, the best one the file system takes:

* collapse: the kernel cuts blocks out of the file (ext4, xfs). Nothing is lost but the oldest.
* punch: the blocks are given back but the file keeps its apparent size; between the line above
  and the kept part it reads as zeros (tmpfs, btrfs).
* copy: the kept part is moved to the front and the file shortened; what the task writes in the
  moment between is lost (network file systems).

The bound holds when `trim` returns: between two calls a task can write what its disk takes. Only
files of this layout may be trimmed, never one that a user named, which may hold older things.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

OUTPUT_BYTES_MAX = 64 * 1024 * 1024
TAIL_BYTES = 65_536
KEPT_SHARE = 0.75  # of the bound: trims then come each 16 MiB of output, not with every line
LINE_BYTES_MAX = 4_096  # how far to look for the end of the line that the cut goes through

_COLLAPSE_RANGE = 0x08  # FALLOC_FL_*, linux/falloc.h
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
# A task may print such a line itself: 15 digits keep its offsets far inside 64 bits.
_NOTICE = re.compile(rb"\[mass: (\d{1,15}) bytes of older output dropped\] *\n")


class TrimWay(Enum):
    """How a file is shortened at its front."""

    COLLAPSE = "collapse"
    PUNCH = "punch"
    COPY = "copy"


@dataclass(frozen=True, slots=True)
class OutputPaths:
    """The two files of one attempt."""

    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """Bytes of output; `offset` is that of the first one.

    An offset beyond the one asked for means that the bytes between were dropped.
    """

    offset: int
    data: bytes

    @property
    def next_offset(self) -> int:
        """Return the offset to ask for next."""
        return self.offset + len(self.data)


def attempt_paths(work_dir: str, task_id: int, attempt: int) -> OutputPaths:
    """Return where an attempt's output goes; nothing is made yet."""
    # Text, not Path: this is made for each attempt.
    directory = f"{work_dir}/tasks/{task_id}/{attempt}"
    return OutputPaths(f"{directory}/stdout", f"{directory}/stderr")


class OutputFile:
    """One output file, written by a task with O_APPEND and trimmed and read here.

    A file that does not exist yet is empty. Only one OutputFile may trim a path; it finds the
    state of an earlier one in the file itself. Methods raise OSError for what the disk refuses,
    and for a symbolic link in the file's place, which a task could use to shorten a foreign file.
    """

    def __init__(
        self,
        path: str,
        *,
        bytes_max: int = OUTPUT_BYTES_MAX,
        ways: tuple[TrimWay, ...] = tuple(TrimWay),
    ) -> None:
        """Watch a path; `ways` are tried in order, and one that fails is not tried again."""
        assert bytes_max >= 4 * LINE_BYTES_MAX, "a bound must leave room for the notice"
        self._path = path
        self._bytes_max = bytes_max
        self._ways = ways
        self._shift_bytes = 0  # offset of a byte = its position in the file + this
        self._first_position = 0  # in the file; before it lies the notice, perhaps a hole
        with self._opened(os.O_RDONLY) as descriptor:
            if descriptor is not None:
                self._adopt(descriptor)

    @property
    def total_bytes(self) -> int:
        """Return how much the task has written since its start; the offset of its next byte."""
        with self._opened(os.O_RDONLY) as descriptor:
            size = 0 if descriptor is None else os.fstat(descriptor).st_size
        return size + self._shift_bytes

    @property
    def first_offset(self) -> int:
        """Return the offset of the oldest byte kept; also how many bytes were dropped."""
        return self._first_position + self._shift_bytes

    def read(self, offset: int, limit: int = TAIL_BYTES) -> OutputChunk:
        """Return up to `limit` bytes from `offset` on, or from the oldest byte kept after it.

        Empty at the end; an offset beyond the end is answered with the end.
        """
        with self._opened(os.O_RDONLY) as descriptor:
            if descriptor is None:
                return OutputChunk(0, b"")
            end = os.fstat(descriptor).st_size + self._shift_bytes
            start = min(max(offset, self.first_offset), end)
            return OutputChunk(start, os.pread(descriptor, limit, start - self._shift_bytes))

    def new_bytes(self, since: int) -> OutputChunk:
        """Return what follows offset `since`, one piece at a time; empty when nothing does."""
        return self.read(since, TAIL_BYTES)

    def tail(self, limit: int = TAIL_BYTES) -> OutputChunk:
        """Return the newest bytes, at most `limit`."""
        return self.read(self.total_bytes - limit, limit)

    def trim(self) -> int:
        """Drop the oldest part when the file is beyond its bound; return the bytes dropped now.

        Keeps at least half of the bound, the newest part. Copies nothing on the usual way, so
        it takes about a millisecond for any size.
        """
        with self._opened(os.O_RDWR) as descriptor:
            if descriptor is None:
                return 0
            size = os.fstat(descriptor).st_size
            held_bytes = size - self._first_position
            if held_bytes <= self._bytes_max:
                return 0
            before = self.first_offset
            cut = size - int(self._bytes_max * KEPT_SHARE)
            self._cut(descriptor, cut)
            self._write_notice(descriptor)
            return self.first_offset - before

    def _cut(self, descriptor: int, position: int) -> None:
        """Drop what lies before the position, rounded down to a block."""
        block_bytes = os.fstatvfs(descriptor).f_bsize
        whole_blocks = position - position % block_bytes
        while True:
            way = self._ways[0]
            try:
                if way is TrimWay.COLLAPSE:
                    # A hole of an earlier life of this file is cut out with the rest.
                    _fallocate(descriptor, _COLLAPSE_RANGE, whole_blocks)
                    self._shift_bytes += whole_blocks
                    self._first_position = 0
                elif way is TrimWay.PUNCH:
                    _fallocate(descriptor, _PUNCH_HOLE_KEEP_SIZE, whole_blocks)
                    self._first_position = whole_blocks
                else:
                    self._copy_down(descriptor, position)
            except OSError as error:
                if error.errno not in _UNSUPPORTED or len(self._ways) == 1:
                    raise
                self._ways = self._ways[1:]
                continue
            return

    def _copy_down(self, descriptor: int, position: int) -> None:
        copied = 0
        while piece := os.pread(descriptor, 1024 * 1024, position + copied):
            os.pwrite(descriptor, piece, copied)
            copied += len(piece)
        os.ftruncate(descriptor, copied)
        self._shift_bytes += position
        self._first_position = 0

    def _write_notice(self, descriptor: int) -> None:
        """Overwrite the front with the line that says how much is gone.

        After a punch it goes into the hole and ends there. Otherwise it takes the place of the
        oldest kept bytes, and reaches to the end of the line that the cut went through.
        """
        if self._first_position > 0:
            notice = _notice(self.first_offset, 0)
        else:
            shortest = len(_notice(self._shift_bytes + LINE_BYTES_MAX, 0))
            front = os.pread(descriptor, LINE_BYTES_MAX, 0)
            line_end = front.find(b"\n", shortest - 1)
            self._first_position = shortest if line_end < 0 else line_end + 1
            notice = _notice(self.first_offset, self._first_position)
        os.pwrite(descriptor, notice, 0)

    def _adopt(self, descriptor: int) -> None:
        """Find out what an earlier OutputFile has done to this file."""
        front = os.pread(descriptor, LINE_BYTES_MAX, 0)
        match = _NOTICE.match(front)
        if match is None:
            return
        dropped_bytes = int(match[1])
        position = match.end()
        if front[position : position + 1] == b"\0":
            # Punched: the kept part begins where it always was, since nothing was moved. A file
            # that was moved before it was punched does not arise: the ways only get worse, and
            # one file system takes the same way each time.
            self._first_position = dropped_bytes
        else:
            self._first_position = position
            self._shift_bytes = dropped_bytes - position

    @contextmanager
    def _opened(self, mode: int) -> Iterator[int | None]:
        try:
            descriptor = os.open(self._path, mode | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            yield None
            return
        try:
            # A user may send output to a device, which has no front to cut off.
            yield descriptor if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
        finally:
            os.close(descriptor)


def _notice(dropped_bytes: int, length: int) -> bytes:
    text = b"[mass: %d bytes of older output dropped]" % dropped_bytes
    return text.ljust(max(length - 1, 0)) + b"\n"


_LIBC = ctypes.CDLL(None, use_errno=True)
# glibc names the call with 64-bit offsets apart; elsewhere offsets always have 64 bits.
_LIBC_FALLOCATE = getattr(_LIBC, "fallocate64", None) or _LIBC.fallocate
_LIBC_FALLOCATE.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_LIBC_FALLOCATE.restype = ctypes.c_int


def _fallocate(descriptor: int, mode: int, length: int) -> None:
    """Apply the mode to the first `length` bytes. Raises OSError with the kernel's errno."""
    if _LIBC_FALLOCATE(descriptor, mode, 0, length) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))

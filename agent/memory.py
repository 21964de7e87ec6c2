"""How much memory this process may use and how much is left, in a container or outside.

Owns the levels that bound the agent's memory: the host and every memory group from the agent's own
up to the mounted root, cgroup v1 and v2. The rules kept: the smallest limit is the total; page
cache is never counted as used; a level without a limit below the host's cannot be the tightest
and is not read further.

Files are opened once and read with pread: a reading of the host costs a few microseconds.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

# Group files are short; memory.stat is the longest, about 2 KiB, and smaps-like lists do not occur.
FILE_BYTES_MAX = 16_384


class MemoryUnreadable(Exception):
    """The machine does not say how much memory it has; the message names file and reason."""


@dataclass(frozen=True, slots=True)
class SystemPaths:
    """Where the kernel's files are; tests put a tree of their own in the root's place."""

    root: Path = Path("/")

    def at(self, path: str) -> Path:
        """Return an absolute path below the root."""
        return self.root / path.lstrip("/")


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """Bytes. `available` is the smallest of (limit - used) over all levels, `total` the limit."""

    total_bytes: int
    available_bytes: int
    swap_total_bytes: int
    swap_used_bytes: int


class KeptFile:
    """A small kernel file that stays open; each read sees its present content."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> bytes:
        """Return the whole content, at most FILE_BYTES_MAX bytes. Raises OSError."""
        return os.pread(self._descriptor, FILE_BYTES_MAX, 0)

    def close(self) -> None:
        """Close the file; to be called once."""
        os.close(self._descriptor)


class GroupLevel:
    """One memory group that may bound the agent."""

    def __init__(self, directory: Path, version: int) -> None:
        """Open the group's files. Raises OSError where the group has none."""
        names = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes")
            if version == 1
            else ("memory.max", "memory.current")
        )
        self._limit, self._usage = (KeptFile(directory / name) for name in names)
        self._stat = KeptFile(directory / "memory.stat")
        # v1 counts a group alone without the prefix, and the group with its children with it.
        prefix = b"total_" if version == 1 else b""
        self._cache_keys = (prefix + b"active_file", prefix + b"inactive_file")

    def limit_bytes(self) -> int | None:
        """Return the limit, None for none ("max" on v2, a number beyond all memory on v1)."""
        text = self._limit.read().strip()
        return None if text == b"max" else int(text)

    def used_bytes(self) -> int:
        """Return what the group and its children use, page cache not counted.

        The file lists are the page cache that can be taken back; shared memory lies on the
        anonymous lists and counts.
        """
        cache_bytes = 0
        for line in self._stat.read().splitlines():
            key, _, value = line.partition(b" ")
            if key in self._cache_keys:
                cache_bytes += int(value)
        return max(0, int(self._usage.read()) - cache_bytes)

    def close(self) -> None:
        """Close the group's files."""
        for file in (self._limit, self._usage, self._stat):
            file.close()


class Memory:
    """Reads host and groups; one instance for the life of the agent."""

    def __init__(self, paths: SystemPaths) -> None:
        """Find the levels. Raises MemoryUnreadable without /proc/meminfo."""
        try:
            self._meminfo = KeptFile(paths.at("/proc/meminfo"))
        except OSError as error:
            raise MemoryUnreadable(f"{error.filename}: {error.strerror}") from error
        self._levels = find_levels(paths)

    @property
    def level_count(self) -> int:
        """Return how many groups may bound the agent."""
        return len(self._levels)

    def read(self) -> MemoryReading:
        """Return the present numbers.

        Raises:
            MemoryUnreadable: a file is gone or not what it should be.
        """
        try:
            return self._read()
        except (OSError, ValueError, KeyError) as error:
            raise MemoryUnreadable(f"cannot read the memory's state: {error!r}") from error

    def _read(self) -> MemoryReading:
        info = _meminfo(self._meminfo.read())
        host_bytes = info[b"MemTotal"]
        total_bytes, available_bytes = host_bytes, info[b"MemAvailable"]
        for level in self._levels:
            limit_bytes = level.limit_bytes()
            if limit_bytes is None or limit_bytes >= host_bytes:
                continue
            total_bytes = min(total_bytes, limit_bytes)
            available_bytes = min(available_bytes, limit_bytes - level.used_bytes())
        swap_bytes = info.get(b"SwapTotal", 0)
        return MemoryReading(
            total_bytes=total_bytes,
            available_bytes=max(0, available_bytes),
            swap_total_bytes=swap_bytes,
            swap_used_bytes=swap_bytes - info.get(b"SwapFree", swap_bytes),
        )

    def close(self) -> None:
        """Close every file."""
        self._meminfo.close()
        for level in self._levels:
            level.close()


_MEMINFO_KEYS = (b"MemTotal", b"MemAvailable", b"SwapTotal", b"SwapFree")


def _meminfo(content: bytes) -> dict[bytes, int]:
    """Return the keys of interest in bytes; searching is quicker than parsing all 50 lines."""
    values = {}
    for key in _MEMINFO_KEYS:
        start = content.find(key + b":")
        if start >= 0:
            end = content.index(b"kB", start)
            values[key] = int(content[start + len(key) + 1 : end]) * 1024
    return values


def find_levels(paths: SystemPaths) -> list[GroupLevel]:
    """Return the groups from the agent's own up to the mounted root, innermost first."""
    levels = []
    version, directories = memory_groups(paths)
    for directory in directories:
        try:
            levels.append(GroupLevel(directory, version))
        except FileNotFoundError:
            continue  # v2's root, and groups without the memory controller, bound nothing
        except NotADirectoryError:
            continue
    return levels


def memory_groups(paths: SystemPaths) -> tuple[int, list[Path]]:
    """Return the hierarchy's version (0: none) and its directories, innermost first.

    A group's directory is the mount point plus the group's own path minus the mount's root: in a
    container the mounted tree often begins in the middle of the host's.
    """
    own = _own_groups(paths)
    version, own_path = (1, own["memory"]) if "memory" in own else (2, own.get(""))
    mount = _mount(paths, version) if own_path is not None else None
    if own_path is None or mount is None:
        return 0, []
    mount_root, mount_point = mount
    relative = own_path
    if mount_root != "/":
        inside = own_path == mount_root or own_path.startswith(mount_root + "/")
        relative = own_path[len(mount_root) :] if inside else "/"
    parts = [part for part in relative.split("/") if part]
    if ".." in parts:
        parts = []  # the group lies outside of what this namespace can see
    top = paths.at(mount_point)
    return version, [top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _own_groups(paths: SystemPaths) -> dict[str, str]:
    """Return controller -> path of /proc/self/cgroup; v2's single line has the empty name."""
    try:
        lines = paths.at("/proc/self/cgroup").read_text().splitlines()
    except FileNotFoundError:
        return {}
    groups = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            groups[controller] = path
    return groups


def _mount(paths: SystemPaths, version: int) -> tuple[str, str] | None:
    """Return (root, mount point) of the memory hierarchy, or None where it is not mounted."""
    try:
        lines = paths.at("/proc/self/mountinfo").read_text().splitlines()
    except FileNotFoundError:
        return None
    roots: dict[str, str] = {}  # by mount point; of two mounts on one point the later is seen
    for line in lines:
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if version == 1 and (kind != "cgroup" or "memory" not in options.split(" ")[-1].split(",")):
            continue
        if version == 2 and kind != "cgroup2":
            continue
        fields = before.split(" ")
        roots[_unescape(fields[4])] = _unescape(fields[3])
    return next(((root, mount) for mount, root in roots.items()), None)


def _unescape(text: str) -> str:
    """Undo the octal escapes of mountinfo, such as \\040 for a space."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)

"""Where the kernel's groups are mounted, and where this process is among them.

Owns reading /proc/self/mountinfo and /proc/self/cgroup for enforcement. The rule kept: a group is
named by its directory, and one that cannot be reached is refused in words.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from agent.group import EnforcementError

UNIFIED = ""  # what stands for v2 in the place of a v1 controller, as in /proc/self/cgroup


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted hierarchy; `own` is this process's directory in it."""

    mount: Path
    own: Path


def find_hierarchy(controller: str) -> Hierarchy:
    """Return where a v1 controller, or v2 by UNIFIED, is mounted and where this process is in it.

    Raises:
        EnforcementError: it is not mounted, or this process's group lies outside the mount.
    """
    found = locate(
        controller,
        Path("/proc/self/mountinfo").read_text(encoding="utf-8"),
        Path("/proc/self/cgroup").read_text(encoding="utf-8"),
    )
    if not found.own.is_dir():
        raise EnforcementError(f"own {_words(controller)} group {found.own} does not exist")
    return found


def locate(controller: str, mountinfo: str, memberships: str) -> Hierarchy:
    """Return the same from the text of /proc/self/mountinfo and /proc/self/cgroup.

    In a container the mount may show only a part of the tree: a group's directory is the mount
    point plus the group's path minus the mount's root.
    """
    words = _words(controller)
    roots: dict[str, str] = {}  # by mount point; of two mounts on one point the later is seen
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if (kind == "cgroup2") if controller == UNIFIED else _is_v1(kind, options, controller):
            root, mount = left.split(" ")[3:5]
            roots[mount] = root
    if not roots:
        raise EnforcementError(f"no {words} hierarchy is mounted")
    for line in memberships.splitlines():
        number, controllers, path = line.split(":", 2)
        if (number == "0") if controller == UNIFIED else controller in controllers.split(","):
            break
    else:
        raise EnforcementError(f"this process is in no {words} group")
    for mount, root in roots.items():
        if os.path.commonpath([root, path]) == root and ".." not in path.split("/"):
            inside = os.path.relpath(path, root)
            return Hierarchy(Path(mount), Path(os.path.normpath(Path(mount, inside))))
    seen = ", ".join(roots.values())
    raise EnforcementError(f"own {words} group {path} lies outside the mount of {seen}")


def _is_v1(kind: str, options: str, controller: str) -> bool:
    return kind == "cgroup" and controller in options.split(",")


def _words(controller: str) -> str:
    return f"cgroup v1 {controller}" if controller else "cgroup v2"

"""What the kernel and systemd have to say about the memory of one group, beside the limits.

Owns the names that others have given: systemd's protocol by which a program asks to be told that
memory gets short, and the marks that systemd-oomd leaves. The rule kept: a machine that has
neither is no error.
"""

from __future__ import annotations

import base64
import os

from agent.group import Group

# systemd's own default: told when tasks of the group waited 200 ms within 2 s. Windows of whole
# 2 s are what a program without special rights may ask for.
PRESSURE_ASKED = b"some 200000 2000000\0"
OOMD_MARK = "user.oomd_kill"  # how many processes systemd-oomd has killed in the group


def pressure_variables(group: Group) -> dict[str, str]:
    """Return MEMORY_PRESSURE_WATCH and _WRITE where the group has a file to watch (cgroup v2).

    A program that speaks the protocol writes the one into the other and polls it for POLLPRI. The
    program must be able to write the file: one of another user than the agent's is not told.
    """
    for path in group.join_paths:
        file = os.path.join(os.path.dirname(path), "memory.pressure")
        if os.path.exists(file):
            asked = base64.b64encode(PRESSURE_ASKED).decode("ascii")
            return {"MEMORY_PRESSURE_WATCH": file, "MEMORY_PRESSURE_WRITE": asked}
    return {}


def is_marked_by_oomd(group: Group) -> bool:
    """Return whether systemd-oomd says that it has killed in the group."""
    for path in group.join_paths:
        try:
            if int(os.getxattr(os.path.dirname(path), OOMD_MARK)) > 0:
                return True
        except (OSError, ValueError):
            continue  # no mark, or a file system without marks
    return False

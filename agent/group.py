"""What holds the processes of one attempt together, whichever way memory is enforced.

Owns the value that enforcement hands out and the launcher waits in. The rule kept: a group is one
attempt's for its whole life and is never used again.
"""

from __future__ import annotations

from dataclasses import dataclass


class EnforcementError(Exception):
    """The machine refused something about a group; the message names group, value and reason."""


class LimitRefused(EnforcementError):
    """The limit lies below what the group uses and cannot be freed; the old limit stays."""


@dataclass(frozen=True, slots=True)
class Group:
    """One prepared group.

    `join_paths` are the cgroup.procs files a launcher writes itself into, slow ones first;
    `variables` are added to the environment of what is started in it.
    """

    name: str
    join_paths: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()

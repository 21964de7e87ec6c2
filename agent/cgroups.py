"""What enforcing by cgroup v1 and by v2 have in common: what follows from owning the groups.

Owns the node's group and what is known of each task's group in it. The rule kept: what the two say
to the kernel in words of their own is in `agent.cgroup1` and `agent.cgroup2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from agent.cgroup1_node import Cgroup1Node
from agent.cgroup2_node import Cgroup2Node
from agent.cgroupfs import processes
from agent.group import Group, NodeMemory
from agent.held import HeldMemory
from agent.proctree import send_signal


@dataclass(slots=True)
class Slot:
    """What is known of one group beyond what the kernel keeps."""

    memory: HeldMemory
    limit_bytes: int | None = None

    def close(self) -> None:
        """Close the kernel's files."""
        self.memory.close()


NodeT = TypeVar("NodeT", bound=Cgroup1Node | Cgroup2Node)
SlotT = TypeVar("SlotT", bound=Slot)


class Cgroups(Generic[NodeT, SlotT]):
    """The common part of an enforcement; see `agent.enforce.Enforcement` for the contract."""

    poll_interval_ns = None

    def __init__(self, node_name: str, base: Path, node: NodeT) -> None:
        """Take over `base`, the directory of the node's group."""
        self._node_name = node_name
        self._base = base
        self._node = node
        self._slot_count = 0
        self._slots: dict[str, SlotT] = {}

    def set_capacity(self, capacity_bytes: int | None) -> int | None:
        """Hold all groups together to the capacity; one below use is set as low as can be."""
        return self._node.set_capacity(capacity_bytes)

    def node_memory(self) -> NodeMemory:
        """Return what all groups hold, and act near the end where the node has to."""
        return self._node.memory(slot.memory for slot in self._slots.values())

    def stall_fd(self) -> int | None:
        """Return what tells of the node's group reaching its end."""
        return self._node.stall_fd()

    def clear_stall(self) -> None:
        """Make it ready for the next time."""
        self._node.clear_stall()

    def started(self, group: Group, pid: int) -> None:
        """Nothing to learn: the kernel knows who is in the group."""

    def usage(self, group: Group) -> int:
        """Return anonymous plus shared memory of the whole group; 3 to 20 us."""
        return self._slots[group.name].memory.read()

    def usages(self, groups: Sequence[Group]) -> list[int]:
        """Return the same of many groups."""
        return [self.usage(group) for group in groups]

    def signal(self, group: Group, number: int) -> int:
        """Signal every process of the group once; one that forks meanwhile may be missed."""
        return send_signal(processes(self._base / group.name), number)

    def poll(self) -> None:
        """Nothing to do: the kernel enforces by itself."""

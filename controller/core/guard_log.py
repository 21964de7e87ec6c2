"""What the guards of nodes did lately, for people: bounded rings, never saved."""

from __future__ import annotations

from collections import OrderedDict, deque

from controller.core.model import GuardStep

NODE_STEPS_MAX = 32
TASK_STEPS_MAX = 16
TASKS_MAX = 1_000  # beyond it those of which nothing was told longest are forgotten


class GuardLog:
    """The latest steps by node and by task, oldest first."""

    def __init__(self) -> None:
        self._by_node: dict[str, deque[GuardStep]] = {}
        self._by_task: OrderedDict[int, deque[GuardStep]] = OrderedDict()

    def add(self, node_id: str, step: GuardStep) -> None:
        """Note a step of a known node."""
        self._by_node.setdefault(node_id, deque(maxlen=NODE_STEPS_MAX)).append(step)
        if not step.task_id:
            return
        if step.task_id not in self._by_task and len(self._by_task) >= TASKS_MAX:
            self._by_task.popitem(last=False)
        self._by_task.setdefault(step.task_id, deque(maxlen=TASK_STEPS_MAX)).append(step)
        self._by_task.move_to_end(step.task_id)

    def of_node(self, node_id: str) -> tuple[GuardStep, ...]:
        """Return the latest steps on a node."""
        return tuple(self._by_node.get(node_id, ()))

    def of_task(self, task_id: int) -> tuple[GuardStep, ...]:
        """Return the latest steps about a task."""
        return tuple(self._by_task.get(task_id, ()))

    def forget_node(self, node_id: str) -> None:
        """Forget a node that has gone."""
        self._by_node.pop(node_id, None)

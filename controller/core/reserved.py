"""What running tasks have reserved follows what they use, once their category is known.

Nothing of it is saved: after a restart it begins with what is saved of each task, and the next
samples bring it back to what they use.
"""

from __future__ import annotations

from allocator.ledger import Reservation
from controller.core.cluster import Cluster
from controller.core.model import TaskState

# A move by less than this share of what is reserved is left for later.
STEP_SHARE = 64


def follow_use(cluster: Cluster, now_ns: int) -> None:
    """Take in what the tasks of nodes with new samples use, and resize what they have reserved.

    What others give up is given before anything is taken, and a rise that does not fit takes what
    is free: the sum of a node never passes its capacity. Cost: linear in the tasks of those nodes.
    """
    if not cluster.resampled:
        return
    slots, cluster.resampled = sorted(cluster.resampled), set()
    for slot in slots:
        _follow_node(cluster, slot, now_ns)


def _follow_node(cluster: Cluster, slot: int, now_ns: int) -> None:
    node_id = cluster.table.ids[slot]
    if node_id is None:
        return
    moves: list[tuple[int, Reservation]] = []
    for task_id in sorted(cluster.nodes[node_id].task_ids):
        task = cluster.tasks[task_id]
        if task.state not in (TaskState.RUNNING, TaskState.PAUSED, TaskState.STOPPING):
            continue
        entry = cluster.ledger.read(cluster.reservations[task_id])
        if not entry.used_bytes:
            continue  # it was not measured yet: no living process uses nothing
        wanted_bytes = cluster.learning.follow(task, entry.used_bytes, now_ns)
        if wanted_bytes is None:
            continue
        if abs(wanted_bytes - entry.reserved_bytes) * STEP_SHARE > entry.reserved_bytes:
            moves.append((wanted_bytes, entry))
    # Falls first; the order among equals is that of the tasks.
    for wanted_bytes, entry in sorted(moves, key=lambda move: move[0] > move[1].reserved_bytes):
        free_bytes = max(0, cluster.ledger.free_bytes(slot))
        cluster.ledger.resize(entry.handle, min(wanted_bytes, entry.reserved_bytes + free_bytes))

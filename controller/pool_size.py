"""How large the controller's memory pool must be: a sum with a reason on each term."""

from __future__ import annotations

from dataclasses import dataclass

from mass.units import size_words

from allocator.ledger import Ledger
from allocator.pool import Pool
from allocator.series import CHUNK_SLOTS
from allocator.tails import TAIL_BYTES_MAX
from controller.core.errors import InvalidRequest
from controller.core.history import History
from controller.core.limits import MIB, Limits
from controller.core.model import OutputStream
from controller.core.rules import RuleSet

SLACK_RATIO = 1.10  # the pool's own maps (1/64) and room between blocks
RECORD_BYTES = 96  # one reservation, generously
TRIAL_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True)
class PoolNeed:
    """The terms of the sum, in bytes."""

    columns_bytes: int  # the latest values of all nodes, in whole chunks
    histories_bytes: int  # a full history for each node
    ledger_bytes: int  # a record for each running task, and the sums of each node
    tails_bytes: int  # two output tails for each running task

    @property
    def full_bytes(self) -> int:
        """Everything at its bound."""
        return int((self.least_bytes + self.histories_bytes + self.tails_bytes) * SLACK_RATIO)

    @property
    def least_bytes(self) -> int:
        """What no shortening can give up."""
        return self.columns_bytes + self.ledger_bytes + MIB


def need(limits: Limits, rules: RuleSet) -> PoolNeed:
    """Return what these bounds and rules ask for, measured on a trial series of one node."""
    with Pool(TRIAL_BYTES) as pool:
        one = Limits(nodes_max=1, tasks_running_max=1)
        history = History(pool, one, rules.window_metrics, rules.custom_metrics)
        history.series.add_node()
        statistics = history.series.statistics()
        per_node = statistics.history_size_bytes
        per_chunk = statistics.bytes_used - per_node
        ledger = Ledger(pool, limits.nodes_max, 1)
        ledger_columns = ledger.bytes_used()
        ledger.close()
        history.series.close()
    chunks = -(-limits.nodes_max // CHUNK_SLOTS)
    records = limits.tasks_running_max + limits.reservations_max
    return PoolNeed(
        columns_bytes=chunks * per_chunk + 16 * limits.nodes_max,
        histories_bytes=limits.nodes_max * per_node,
        ledger_bytes=ledger_columns + records * RECORD_BYTES + 64 * 1024,
        tails_bytes=limits.tasks_running_max * len(OutputStream) * TAIL_BYTES_MAX,
    )


def pool_bytes(limits: Limits, rules: RuleSet) -> int:
    """Return the size of the pool: as asked for, else what everything at its bound needs.

    Raises:
        InvalidRequest: what was asked for cannot even hold the columns and the ledger.
    """
    wanted = need(limits, rules)
    if not limits.pool_bytes:
        return wanted.full_bytes
    if limits.pool_bytes < wanted.least_bytes:
        # In bytes as well: who writes the rounded words may be below the bound again.
        least = f"{size_words(wanted.least_bytes)} ({wanted.least_bytes:,} bytes)"
        raise InvalidRequest(
            f"pool is {size_words(limits.pool_bytes)}; {limits.nodes_max} nodes and"
            f" {limits.tasks_running_max} running tasks need at least {least}"
        )
    return limits.pool_bytes

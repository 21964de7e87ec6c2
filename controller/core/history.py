"""What was measured on each node: the series in the pool, by the names that rules use.

Samples come here straight from the wire; nothing is kept of them as Python objects.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from allocator.pool import Pool
from allocator.series import Series, WindowFunction
from controller.core.expressions import Window
from controller.core.limits import Limits
from controller.core.metrics import METRIC_NAMES, WINDOWLESS_NAMES
from controller.core.nodes import Floats, Ints

# The others are known only at the moment of asking, so there is nothing of them to keep.
SERIES_METRICS = tuple(name for name in METRIC_NAMES if name not in WINDOWLESS_NAMES)
INDEX = {name: index for index, name in enumerate(SERIES_METRICS)}


class History:
    """The samples of all nodes by slot. Histories are kept only for metrics in windows."""

    def __init__(
        self, pool: Pool, limits: Limits, history: frozenset[str], custom: tuple[str, ...] = ()
    ) -> None:
        self.metrics = SERIES_METRICS + custom  # in the order of their columns
        self.series = Series(
            pool,
            self.metrics,
            history & frozenset(self.metrics),
            limits.nodes_max,
            hold_ns=limits.sample_hold_ns,
        )
        self.kept = history  # the metrics that windows may name
        self.custom = {name: self.series.index[name] for name in custom}
        self._hold_ns = limits.sample_hold_ns
        self.version = 0  # grows with each sample, and with each node that comes or goes

    def add_node(self) -> int:
        """Return a slot for a new node; raises what Series.add_node raises."""
        self.version += 1
        return self.series.add_node()

    def remove_node(self, slot: int) -> None:
        """Free the slot of a node that is gone."""
        self.version += 1
        self.series.remove_node(slot)

    def begin(self) -> Any:
        """Return the row to fill for one sample, indexed by INDEX; all NaN (not reported)."""
        self.series.clear_values()
        return self.series.values

    def write(self, slot: int, at_ns: int) -> bool:
        """Keep the row as the node's newest sample; False if a newer one is already there."""
        self.version += 1
        return self.series.record(slot, at_ns)

    def latest(self, metric: str, now_ns: int) -> Floats:
        """Return the newest values of a metric by slot, NaN where none or older than the hold."""
        (column,) = self.latest_of((metric,), now_ns)
        return column

    def latest_of(self, metrics: Iterable[str], now_ns: int) -> list[Floats]:
        """Return the same for several metrics, for which it is found out once what is too old."""
        stale = self.sampled_at_ns() + self._hold_ns < now_ns
        columns = [self.series.latest(metric) for metric in metrics]
        if stale.any():
            return [np.where(stale, math.nan, column) for column in columns]
        return columns

    def sampled_at_ns(self) -> Ints:
        """Return when the newest sample of each slot was taken; 0 where there is none."""
        return self.series.times()

    def window(self, window: Window, now_ns: int) -> Floats:
        """Return a window's value by slot, NaN where there is no data."""
        function = WindowFunction[window.function.name]
        return self.series.window(function, window.metric, window.window_ns, now_ns)

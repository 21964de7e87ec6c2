"""Series: the samples of every node, kept in a memory pool.

Rule: after create nothing here grows outside the pool; a node costs no Python object at all,
however many samples arrive. Views of the pool's memory (`latest`, `times`, `chunks`) are for one
cycle of the thread that records; kept beyond `close` they show whatever the pool puts there next.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from allocator.pool import Pool, PoolExhausted, ffi, lib

WINDOW_NS_MAX: int = lib.MASS_SERIES_WINDOW_NS_MAX
"""The longest window: what an unshortened history reaches back (one hour)."""
METRICS_MAX: int = lib.MASS_SERIES_METRICS_MAX
NODES_MAX: int = lib.MASS_SERIES_NODES_MAX
CHUNK_SLOTS: int = lib.MASS_SERIES_CHUNK_SLOTS
LEVELS_MAX: int = lib.MASS_SERIES_LEVELS_MAX
"""The level at which no histories are left."""
HOLD_NS: int = 30_000_000_000
"""How long a value holds without a new sample: three heartbeats of 10 s."""
HOLD_NS_MAX: int = lib.MASS_SERIES_HOLD_NS_MAX

_OK: int = lib.MASS_SERIES_OK
_STALE: int = lib.MASS_SERIES_STALE


class WindowFunction(enum.IntEnum):
    """What a window is asked for; see `Series.window`."""

    AVG = lib.MASS_WINDOW_AVG
    MIN = lib.MASS_WINDOW_MIN
    MAX = lib.MASS_WINDOW_MAX
    LAST = lib.MASS_WINDOW_LAST
    DELTA = lib.MASS_WINDOW_DELTA
    RATE = lib.MASS_WINDOW_RATE


class SeriesError(Exception):
    """A call on a series was refused; nothing changed."""


class NodesFull(SeriesError):
    """Every slot of the series is taken."""


class UnknownSlot(SeriesError):
    """No node has this slot."""


@dataclass(frozen=True, slots=True)
class SeriesStatistics:
    """`history_size_bytes` is one node's history at the present level."""

    bytes_used: int
    history_size_bytes: int
    stale_count: int
    node_count: int
    slot_count: int
    chunk_count: int
    level: int


class Series:
    """The latest values and the histories of at most `nodes_max` nodes.

    A metric is named by its place in `metrics`; `series.index[name]` gives it. Values go into the
    reusable buffer `series.values`, one per metric, NaN for what was not reported.
    """

    def __init__(
        self,
        pool: Pool,
        metrics: Sequence[str],
        history: Collection[str],
        nodes_max: int,
        hold_ns: int = HOLD_NS,
    ) -> None:
        """Take the series' fixed part from the pool; `history` names the metrics with a history.

        Raises:
            ValueError: a name, count or time is out of bounds.
            PoolExhausted: the pool has no room for the fixed part.
        """
        _check_arguments(metrics, history, nodes_max, hold_ns)
        self.metrics: tuple[str, ...] = tuple(metrics)
        self.index: dict[str, int] = {name: place for place, name in enumerate(metrics)}
        self.nodes_max = nodes_max
        self.hold_ns = hold_ns
        self._handle = pool.handle  # keeps the pool's mapping as long as the series and its views
        mask = sum(1 << self.index[name] for name in history)
        self._series: Any = lib.mass_series_create(
            self._handle, len(metrics), mask, nodes_max, hold_ns
        )
        if self._series == ffi.NULL:
            raise PoolExhausted(f"a series of {len(metrics)} metrics for {nodes_max} nodes")
        self.values = self.new_values()
        self._missing = self.new_values()
        self._slot_count = 0
        self._columns: list[list[NDArray[np.float64]]] = []
        self._times: list[NDArray[np.int64]] = []

    def close(self) -> None:
        """Give all memory back to the pool; a second call does nothing."""
        if self._series is None:
            return
        series, self._series = self._series, None  # from now on cffi refuses every call
        self._columns, self._times, self._slot_count = [], [], 0
        lib.mass_series_destroy(series)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- nodes and samples ---

    def add_node(self) -> int:
        """Return a slot for a new node, with no values and an empty history.

        Raises:
            NodesFull: `nodes_max` nodes are there.
            PoolExhausted: the pool has no room for a history (`shorten` makes some) or a chunk.
        """
        slot: int = lib.mass_series_add_node(self._series)
        if slot < 0:
            raise self._error(slot)
        if slot >= self._slot_count:
            self._slot_count = slot + 1
            if slot // CHUNK_SLOTS == len(self._times):
                self._map_chunk(slot // CHUNK_SLOTS)
        return slot

    def remove_node(self, slot: int) -> None:
        """Free a slot and its history; the next node may get it.

        Raises:
            UnknownSlot: no node has this slot.
        """
        code = lib.mass_series_remove_node(self._series, slot)
        if code != _OK:
            raise self._error(code, slot)

    def new_values(self) -> Any:
        """Return a buffer of one double per metric, all NaN, for use with `record`."""
        return ffi.new("double[]", [float("nan")] * len(self.metrics))

    def clear_values(self) -> None:
        """Set all of `self.values` to NaN, so that nothing of the sample before is left."""
        ffi.memmove(self.values, self._missing, 8 * len(self.metrics))

    def record(self, slot: int, at_ns: int, values: Any = None) -> bool:
        """Take one sample, by default from `self.values`; False when it was stale.

        A sample older than the node's newest is ignored and counted. NaN, infinities and values
        beyond 1e30 count as not reported: `latest` then has NaN, the history goes on holding the
        value before. Cost: O(metrics), no allocation.

        Raises:
            UnknownSlot: no node has this slot.
            ValueError: at_ns is outside 1..2^62, or `values` has not one value per metric.
        """
        if values is None:
            values = self.values
        elif len(values) != len(self.metrics):
            raise ValueError(f"{len(values)} values for {len(self.metrics)} metrics")
        code: int = lib.mass_series_record(self._series, slot, at_ns, values)
        if code == _OK:
            return True
        if code == _STALE:
            return False
        if code == lib.MASS_SERIES_E_ARGUMENT:
            raise ValueError(f"slot {slot}: at_ns {at_ns} is outside 1..2^62")
        raise self._error(code, slot)

    # --- reading ---

    def latest(self, metric: str) -> NDArray[np.float64]:
        """Return the newest value of a metric for all slots; NaN where there is none.

        Read-only, indexed by slot. Up to 1,024 nodes it is a view of the pool's memory; beyond
        that the chunks are copied into one array (8 bytes a slot).

        Raises:
            KeyError: there is no such metric.
        """
        parts = self.chunks(metric)
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0)

    def chunks(self, metric: str) -> list[NDArray[np.float64]]:
        """Return the same as `latest` as one view per chunk of 1,024 slots, never copied."""
        place = self.index[metric]
        return [
            columns[place][:length]
            for columns, length in zip(self._columns, self._chunk_lengths(), strict=True)
        ]

    def times(self) -> NDArray[np.int64]:
        """Return at_ns of the newest sample for all slots, 0 for none; otherwise as `latest`."""
        pairs = zip(self._times, self._chunk_lengths(), strict=True)
        parts = [times[:length] for times, length in pairs]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def window(
        self,
        function: WindowFunction,
        metric: str,
        window_ns: int,
        now_ns: int,
        slots: NDArray[np.int32] | None = None,
        out: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """Return `function` of a metric over (now_ns - window_ns, now_ns], for `slots` or for all.

        Time-weighted: a value holds until the next sample that reports the metric, at most
        `hold_ns`; time without a value weighs nothing. LAST is the value that holds now, DELTA
        that minus the first value in the window, RATE the delta per second since then.
        NaN is NO_DATA: no value holds now (whatever was before), the slot is free, or a rate has
        no time to be over. A history that starts inside the window answers over what is there.

        Exact where the raw samples reach back (the last 64, fewer when shortened). Beyond that
        the window's start moves back to the start of its row (by less than 10 s; by less than
        60 s for windows over 6 minutes, sooner when shortened), values carry a relative error of
        2^-24, and a row which has values for only part of its time weighs by whole milliseconds.
        At the last level, and for metrics without history, the latest value is all there is:
        it answers AVG, MIN, MAX and LAST; DELTA and RATE are NaN.

        A now_ns before a node's newest sample means the time of that sample. `slots` and `out`
        must be contiguous. Cost: at most 97 rows a slot.

        Raises:
            KeyError: there is no such metric.
            UnknownSlot: a slot was never used.
            ValueError: window_ns is outside 1..WINDOW_NS_MAX, or `out` has another length.
        """
        count = self._slot_count if slots is None else len(slots)
        if out is None:
            out = np.empty(count)
        elif len(out) != count:
            raise ValueError(f"out has {len(out)} places for {count} slots")
        code = lib.mass_series_window(
            self._series,
            function,
            self.index[metric],
            window_ns,
            now_ns,
            ffi.NULL if slots is None else ffi.from_buffer("int32_t[]", slots),
            count,
            ffi.from_buffer("double[]", out, require_writable=True),
        )
        if code == lib.MASS_SERIES_E_ARGUMENT:
            raise ValueError(
                f"window_ns {window_ns} is outside 1..{WINDOW_NS_MAX} or now_ns {now_ns} is no time"
            )
        if code != _OK:
            raise UnknownSlot(f"a slot is outside 0..{self._slot_count - 1}")
        return out

    # --- room ---

    def shorten(self) -> int:
        """Halve all histories one level, in place, and return the bytes freed (0 at the last).

        Level 0 keeps 64 samples, 36 ten-second and 60 one-minute rows of each metric, level 1 and
        2 half and a quarter of that, level 3 (`LEVELS_MAX`) nothing. Windows that reach further
        back than what is kept answer over what is left.
        """
        freed: int = lib.mass_series_shorten(self._series)
        return freed

    def lengthen(self) -> bool:
        """Double all histories one level; False, with nothing changed, when the pool lacks room.

        What was forgotten stays forgotten: the longer histories fill with new samples.
        """
        code: int = lib.mass_series_lengthen(self._series)
        return code == _OK

    @property
    def level(self) -> int:
        """How often the histories were halved: 0..LEVELS_MAX."""
        return self.statistics().level

    def bytes_used(self) -> int:
        """Return the bytes of all blocks of the series, as the pool counts them."""
        return self.statistics().bytes_used

    def statistics(self) -> SeriesStatistics:
        """Return sizes and counts."""
        raw = ffi.new("mass_series_statistics_t *")
        lib.mass_series_statistics(self._series, raw)
        return SeriesStatistics(
            bytes_used=raw.bytes_used,
            history_size_bytes=raw.history_size_bytes,
            stale_count=raw.stale_count,
            node_count=raw.node_count,
            slot_count=raw.slot_count,
            chunk_count=raw.chunk_count,
            level=raw.level,
        )

    def check(self) -> None:
        """Assert every invariant of the series. Linear in all it keeps."""
        assert lib.mass_series_check(self._series) == 1, "the series contradicts itself"

    # --- inside ---

    def _chunk_lengths(self) -> list[int]:
        starts = range(0, self._slot_count, CHUNK_SLOTS)
        return [min(CHUNK_SLOTS, self._slot_count - start) for start in starts]

    def _map_chunk(self, chunk: int) -> None:
        """Make the read-only views of one chunk, once: chunks never move."""
        size = 8 * lib.mass_series_chunk_length(self._series, chunk)
        handle = self._handle

        def view(pointer: Any, kind: Any) -> NDArray[Any]:
            kept = ffi.gc(pointer, lambda _: handle)
            array: NDArray[Any] = np.frombuffer(ffi.buffer(kept, size), dtype=kind)
            array.flags.writeable = False
            return array

        self._columns.append(
            [
                view(lib.mass_series_column(self._series, chunk, place), np.float64)
                for place in range(len(self.metrics))
            ]
        )
        self._times.append(view(lib.mass_series_times(self._series, chunk), np.int64))

    def _error(self, code: int, slot: int | None = None) -> Exception:
        if code == lib.MASS_SERIES_E_NODES_FULL:
            return NodesFull(f"all {self.nodes_max} slots are taken")
        if code == lib.MASS_SERIES_E_SLOT:
            return UnknownSlot(f"no node has slot {slot}")
        return PoolExhausted("a node's samples")


def series_bytes(metric_count: int, history_count: int, nodes_max: int) -> int:
    """Return what a series of nodes_max nodes takes from a pool with unshortened histories.

    Raises:
        ValueError: a count is out of bounds.
    """
    if not 0 <= history_count <= metric_count:
        raise ValueError(f"history of {history_count} metrics out of {metric_count}")
    names = [str(place) for place in range(metric_count)]
    _check_arguments(names, names[:history_count], nodes_max, HOLD_NS)
    size: int = lib.mass_series_size(metric_count, history_count, nodes_max)
    return size


def _check_arguments(
    metrics: Sequence[str], history: Collection[str], nodes_max: int, hold_ns: int
) -> None:
    if not 1 <= len(metrics) <= METRICS_MAX:
        raise ValueError(f"{len(metrics)} metrics; a series keeps 1..{METRICS_MAX}")
    if len(set(metrics)) != len(metrics):
        raise ValueError("a metric is named twice")
    unknown = sorted(set(history) - set(metrics))
    if unknown:
        raise ValueError(f"history of {', '.join(unknown)}, which is not among the metrics")
    if not 1 <= nodes_max <= NODES_MAX:
        raise ValueError(f"nodes_max is {nodes_max}, allowed are 1..{NODES_MAX}")
    if not 1 <= hold_ns <= HOLD_NS_MAX:
        raise ValueError(f"hold_ns is {hold_ns}, allowed are 1..{HOLD_NS_MAX}")

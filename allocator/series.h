/* Series: the samples of every node, in blocks of one memory pool.
 *
 * A node has a slot. The latest values of all slots lie in chunks of 1,024 slots, one contiguous
 * column per metric, NaN where a slot is free or the newest sample did not report the metric.
 * Chunks never move, so a column may be read in place until the series is destroyed. Beside it
 * each node has a block with the history (history.h) of the metrics that keep one. The chunks
 * stay when nodes leave; a node's history goes with it.
 *
 * Every call is safe from any thread (one lock per series); a column being read in place is
 * not protected from a record at the same time. All memory comes from the pool: at create, with a
 * node, and with lengthen; a call for which the pool has no room changes nothing.
 *
 * The declarations between the cffi marks are read by build.py: plain C only, no conditionals.
 */
#ifndef MASS_SERIES_H
#define MASS_SERIES_H

#include <stddef.h>
#include <stdint.h>

#include "history.h"
#include "memory_allocator.h"

/* cffi: begin */

#define MASS_SERIES_CHUNK_SLOTS 1024
#define MASS_SERIES_METRICS_MAX 64
#define MASS_SERIES_NODES_MAX 1048576
#define MASS_SERIES_LEVELS_MAX 3                   /* at this level no history is kept */
#define MASS_SERIES_WINDOW_NS_MAX 3600000000000    /* one hour: what level 0 reaches back */
#define MASS_SERIES_HOLD_NS_MAX 600000000000       /* bounds the rows one record may touch */
#define MASS_SERIES_AT_NS_MAX 4611686018427387904  /* 2^62, so that sums of times fit */

enum mass_series_error {
    MASS_SERIES_OK = 0,
    MASS_SERIES_STALE = 1,         /* older than the newest sample of the node; ignored, counted */
    MASS_SERIES_E_EXHAUSTED = -1,  /* the pool has no room */
    MASS_SERIES_E_NODES_FULL = -2, /* nodes_max nodes are there */
    MASS_SERIES_E_SLOT = -3,       /* no node has this slot */
    MASS_SERIES_E_ARGUMENT = -4    /* metric, function, time or window out of bounds */
};

typedef struct mass_series mass_series_t;

/* bytes_used is what the pool counts for all blocks of the series. */
typedef struct {
    size_t bytes_used;
    size_t history_size_bytes; /* of one node at the present level, 0 without histories */
    uint64_t stale_count;      /* samples ignored because they were older than the newest */
    uint32_t node_count;
    uint32_t slot_count;       /* slots ever used: the length of a full column */
    uint32_t chunk_count;
    uint32_t level;            /* 0 keeps most, MASS_SERIES_LEVELS_MAX nothing */
} mass_series_statistics_t;

/* Returns what the pool will count for a series with nodes_max nodes at level 0, or 0 if an
 * argument is out of bounds. */
size_t mass_series_size(uint32_t metric_count, uint32_t history_count, uint32_t nodes_max);

/* Makes a series of metric_count metrics (1..64) for at most nodes_max nodes; bit m of
 * history_mask says that metric m keeps a history; a value holds for hold_ns. Returns NULL if the
 * pool has no room or an argument is out of bounds. */
mass_series_t *mass_series_create(mass_pool_t *pool, uint32_t metric_count, uint64_t history_mask,
                                  uint32_t nodes_max, int64_t hold_ns);

/* Frees every block of the series; columns read in place end here. NULL is ignored. */
void mass_series_destroy(mass_series_t *series);

/* Returns a free slot, now with no values and an empty history: the one freed last, else the next
 * new one. Or E_NODES_FULL, E_EXHAUSTED. */
int32_t mass_series_add_node(mass_series_t *series);

/* Frees the slot and its history. E_SLOT. */
int mass_series_remove_node(mass_series_t *series, int32_t slot);

/* Takes one sample: metric_count values. NaN, infinities and values beyond 1e30 count as not
 * reported: the column gets NaN, the history goes on holding the value before. Returns OK, STALE
 * or E_SLOT, E_ARGUMENT (at_ns outside 1..AT_NS_MAX). O(metrics). */
int mass_series_record(mass_series_t *series, int32_t slot, int64_t at_ns, const double *values);

/* Writes out[i] = `function` (mass_window_t) of slots[i] over (now_ns - window_ns, now_ns], as
 * mass_history_window defines it; NaN for a free slot. slots NULL means slots 0..count-1. At
 * level 3, or for a metric without history, the latest value is all there is: it answers AVG, MIN,
 * MAX and LAST while it holds, DELTA and RATE are NaN. E_ARGUMENT (window_ns outside
 * 1..WINDOW_NS_MAX too), E_SLOT if a slot was never used: then `out` is untouched. */
int mass_series_window(mass_series_t *series, int function, uint32_t metric, int64_t window_ns,
                       int64_t now_ns, const int32_t *slots, size_t count, double *out);

/* Halves the histories of all nodes, in place, one level; from level 2 to 3 they are freed.
 * Windows then reach less far back. Returns the bytes freed; 0 at level 3. */
size_t mass_series_shorten(mass_series_t *series);

/* Doubles the histories of all nodes, one level; what was forgotten stays forgotten. Returns OK,
 * also at level 0, or E_EXHAUSTED: then the level stays and the bytes as well. */
int mass_series_lengthen(mass_series_t *series);

/* The column of one metric, or of the time of the newest sample (0: none), in one chunk; as long as
 * mass_series_chunk_length. NULL out of bounds. */
const double *mass_series_column(mass_series_t *series, uint32_t chunk, uint32_t metric);
const int64_t *mass_series_times(mass_series_t *series, uint32_t chunk);
uint32_t mass_series_chunk_length(mass_series_t *series, uint32_t chunk);

void mass_series_statistics(mass_series_t *series, mass_series_statistics_t *out);

/* Walks everything. Returns 1 when every invariant holds, else 0. Linear. */
int mass_series_check(mass_series_t *series);

/* cffi: end */

#endif

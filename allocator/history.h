/* History: what one node's metrics did lately, inside one block of memory that the caller owns.
 *
 * For each metric the block keeps the last raw samples, then ten-second and one-minute rows
 * (minimum, maximum, time-weighted mean, covered time, first value). Every question about a
 * window is about one function of time: f(t) is the value of the newest sample at or before t
 * that reported the metric, for `hold_ns` after it; beyond that f has no value. Rows are made
 * by integrating f, so raw samples and rows answer the same question with different grain.
 *
 * Nothing here allocates, locks or reads a clock. The block holds no pointers: it may be copied.
 *
 * The declarations between the cffi marks are read by build.py: plain C only, no conditionals.
 */
#ifndef MASS_HISTORY_H
#define MASS_HISTORY_H

#include <stddef.h>
#include <stdint.h>

#define MASS_HISTORY_METRICS_MAX 64

/* Levels: how much each metric keeps. Level 0 keeps 64 samples, 36 ten-second and 60 one-minute
 * rows; each further level keeps half; level 3 keeps nothing and has no block at all. */
#define MASS_HISTORY_LEVEL_NONE 3

/* cffi: begin */

typedef enum mass_window {
    MASS_WINDOW_AVG = 0,   /* integral of f over the time it has a value, divided by that time */
    MASS_WINDOW_MIN = 1,
    MASS_WINDOW_MAX = 2,
    MASS_WINDOW_LAST = 3,  /* f(now) */
    MASS_WINDOW_DELTA = 4, /* f(now) minus the first value of f in the window */
    MASS_WINDOW_RATE = 5   /* that delta per second since f had its first value in the window */
} mass_window_t;

/* cffi: end */

typedef struct mass_history mass_history_t;

/* Returns the size of a block in bytes; 0 at MASS_HISTORY_LEVEL_NONE. */
size_t mass_history_size(unsigned metric_count, unsigned level);

/* Makes an empty history in `history` (mass_history_size bytes, aligned to 8).
 * Requires 1 <= metric_count <= MASS_HISTORY_METRICS_MAX, level below NONE, hold_ns > 0. */
void mass_history_init(mass_history_t *history, unsigned metric_count, unsigned level,
                       int64_t hold_ns);

/* Adds one sample of all metrics; NaN means "not reported": the metric's last value holds on.
 * Requires at_ns not before the newest sample, and 0 < at_ns < 2^62; of two samples at the same
 * instant the later call counts. Cost: O(metrics), at worst O(metrics x rows) after a gap. */
void mass_history_append(mass_history_t *history, int64_t at_ns, const double *values);

/* Returns `function` of one metric over (now_ns - window_ns, now_ns], or NaN for "no data".
 *
 * NaN when the metric has no value now (its last sample is hold_ns old or older), and for RATE
 * when the only value appeared this very instant. A history that starts inside the window
 * answers over what is there; time in which f has no value weighs nothing. A now_ns before the
 * newest sample means the time of the newest sample.
 *
 * Exact (double) while the raw samples reach back to the window's start. Beyond that the answer
 * is taken from rows: the window's start moves back to the start of its row (at most 10 s, or
 * 60 s beyond 6 minutes at level 0), values are rounded to float, and the covered time of a row
 * that f does not fill to the millisecond. */
double mass_history_window(const mass_history_t *history, unsigned metric, mass_window_t function,
                           int64_t window_ns, int64_t now_ns);

/* Starts loading what a window of this length is likely to read; asked one or two nodes ahead it
 * hides most of the time that memory takes. */
void mass_history_prefetch(const mass_history_t *history, unsigned metric, int64_t window_ns);

/* Writes the content of `from` into `to`, a block of mass_history_size(metrics, level) bytes
 * that does not overlap it. What does not fit is forgotten, oldest first. */
void mass_history_copy(mass_history_t *to, unsigned level, const mass_history_t *from);

/* Returns 1 when every invariant holds, else 0. Cost: O(size). */
int mass_history_check(const mass_history_t *history, unsigned metric_count, unsigned level);

#endif

/* See history.h. Layout of a block:
 *
 *     header | at_ns[samples] | per metric: track | values[samples] | rows[short] | rows[long]
 *
 * Sample number q lies at q mod samples; the row of bucket number k (time / grain) at k mod rows.
 * Rows are kept for the buckets before the one that holds the newest sample; that bucket itself
 * is still open and lives, in double, in the metric's track. The open long bucket is the sum of
 * the closed short ones of its minute, so a sample only ever touches the short one.
 */
#include "history.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define NS_PER_S 1000000000LL
#define NS_PER_MS 1000000LL
#define SHORT_GRAIN 0
#define LONG_GRAIN 1

static const int64_t grain_ns[2] = {10 * NS_PER_S, 60 * NS_PER_S};

typedef struct {
    uint16_t samples; /* a power of two */
    uint16_t rows[2];
} lengths_t;

/* The rows of a metric together must stay a multiple of 8 bytes, or the next track is unaligned. */
static const lengths_t lengths_of[MASS_HISTORY_LEVEL_NONE] = {
    {64, {36, 60}}, {32, {18, 30}}, {16, {9, 15}}};

/* A closed bucket; covered_ms == 0 means that f had no value in it. */
typedef struct {
    float minimum, maximum, mean, first;
    uint16_t covered_ms; /* at least 1 where there is a value, so that it always weighs */
    uint16_t first_ms;   /* when f got its first value, after the bucket's start */
} row_t;

/* What f did over a stretch of time; covered_ns may be 0 with a value that has no length yet. */
typedef struct {
    double sum; /* integral of f in value x nanoseconds */
    double minimum, maximum, first;
    int64_t covered_ns;
    int64_t first_at_ns;
} summary_t;

typedef struct {
    double value;  /* the last one reported */
    int64_t at_ns; /* when; -1 before the first */
    summary_t open[2];
} track_t;

struct mass_history {
    uint64_t sample_count; /* ever appended; the newest is number sample_count - 1 */
    int64_t at_ns;         /* of the newest sample */
    int64_t hold_ns;
    int64_t whole_from[2]; /* buckets before this number were forgotten by a shorter level */
    uint32_t samples_held;
    uint16_t metric_count;
    uint16_t level;
};

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static inline size_t track_size(const lengths_t *lengths)
{
    return sizeof(track_t) + lengths->samples * sizeof(double) +
           ((size_t)lengths->rows[0] + lengths->rows[1]) * sizeof(row_t);
}

size_t mass_history_size(unsigned metric_count, unsigned level)
{
    assert(metric_count <= MASS_HISTORY_METRICS_MAX && level <= MASS_HISTORY_LEVEL_NONE);
    if (level == MASS_HISTORY_LEVEL_NONE) {
        return 0;
    }
    const lengths_t *lengths = &lengths_of[level];
    return sizeof(mass_history_t) + lengths->samples * sizeof(int64_t) +
           metric_count * track_size(lengths);
}

static inline const lengths_t *lengths_in(const mass_history_t *history)
{
    return &lengths_of[history->level];
}

static inline int64_t *times_in(const mass_history_t *history)
{
    return (int64_t *)(uintptr_t)(history + 1);
}

static inline track_t *track_in(const mass_history_t *history, unsigned metric)
{
    const lengths_t *lengths = lengths_in(history);
    uintptr_t base = (uintptr_t)(times_in(history) + lengths->samples);
    return (track_t *)(base + metric * track_size(lengths));
}

static inline double *values_in(const track_t *track)
{
    return (double *)(uintptr_t)(track + 1);
}

static inline row_t *rows_in(const track_t *track, const lengths_t *lengths, int grain)
{
    row_t *rows = (row_t *)(uintptr_t)(values_in(track) + lengths->samples);
    return grain == SHORT_GRAIN ? rows : rows + lengths->rows[SHORT_GRAIN];
}

/* --- summaries ---------------------------------------------------------------------------- */

static const summary_t nothing = {0.0, INFINITY, -INFINITY, NAN, 0, INT64_MAX};

static inline void summary_touch(summary_t *into, double value, int64_t at_ns)
{
    into->minimum = value < into->minimum ? value : into->minimum;
    into->maximum = value > into->maximum ? value : into->maximum;
    if (at_ns < into->first_at_ns) {
        into->first = value;
        into->first_at_ns = at_ns;
    }
}

/* Adds f == value over [from_ns, to_ns); an empty stretch adds nothing. */
static inline void summary_add(summary_t *into, double value, int64_t from_ns, int64_t to_ns)
{
    if (from_ns < to_ns) {
        summary_touch(into, value, from_ns);
        into->sum += value * (double)(to_ns - from_ns);
        into->covered_ns += to_ns - from_ns;
    }
}

static inline void summary_merge(summary_t *into, const summary_t *other)
{
    if (other->covered_ns > 0) {
        summary_touch(into, other->first, other->first_at_ns);
        into->minimum = other->minimum < into->minimum ? other->minimum : into->minimum;
        into->maximum = other->maximum > into->maximum ? other->maximum : into->maximum;
        into->sum += other->sum;
        into->covered_ns += other->covered_ns;
    }
}

static inline double summary_mean(const summary_t *of)
{
    double mean = of->covered_ns > 0 ? of->sum / (double)of->covered_ns : of->first;
    /* Rounding may leave the range by one unit in the last place; a mean never does. */
    return mean < of->minimum ? of->minimum : mean > of->maximum ? of->maximum : mean;
}

static inline row_t row_of(const summary_t *summary, int64_t start_ns)
{
    row_t row = {INFINITY, -INFINITY, 0.0F, 0.0F, 0, 0};
    if (summary->covered_ns > 0) {
        row.minimum = (float)summary->minimum;
        row.maximum = (float)summary->maximum;
        row.mean = (float)summary_mean(summary);
        row.first = (float)summary->first;
        row.covered_ms = (uint16_t)larger((summary->covered_ns + NS_PER_MS / 2) / NS_PER_MS, 1);
        row.first_ms = (uint16_t)((summary->first_at_ns - start_ns) / NS_PER_MS);
    }
    return row;
}

/* --- writing ------------------------------------------------------------------------------ */

static void rows_clear(row_t *rows, int64_t length, int64_t from, int64_t to)
{
    const row_t empty = row_of(&nothing, 0);
    for (int64_t number = larger(from, to - length); number < to; number++) {
        rows[number % length] = empty;
    }
}

void mass_history_init(mass_history_t *history, unsigned metric_count, unsigned level,
                       int64_t hold_ns)
{
    assert(metric_count >= 1 && metric_count <= MASS_HISTORY_METRICS_MAX);
    assert(level < MASS_HISTORY_LEVEL_NONE && hold_ns > 0);
    memset(history, 0, mass_history_size(metric_count, level));
    history->hold_ns = hold_ns;
    history->metric_count = (uint16_t)metric_count;
    history->level = (uint16_t)level;
    const lengths_t *lengths = lengths_in(history);
    for (unsigned metric = 0; metric < metric_count; metric++) {
        track_t *track = track_in(history, metric);
        track->value = NAN;
        track->at_ns = -1;
        for (int grain = SHORT_GRAIN; grain <= LONG_GRAIN; grain++) {
            track->open[grain] = nothing;
            rows_clear(rows_in(track, lengths, grain), lengths->rows[grain], 0,
                       lengths->rows[grain]);
        }
    }
}

/* Closes the open bucket of one grain when time goes on into another one. */
static void turn(mass_history_t *history, int grain, int64_t from_ns, int64_t to_ns)
{
    const int64_t from = from_ns / grain_ns[grain];
    const int64_t to = to_ns / grain_ns[grain];
    if (from == to) {
        return;
    }
    const lengths_t *lengths = lengths_in(history);
    const int64_t length = lengths->rows[grain];
    for (unsigned metric = 0; metric < history->metric_count; metric++) {
        track_t *track = track_in(history, metric);
        row_t *rows = rows_in(track, lengths, grain);
        rows[from % length] = row_of(&track->open[grain], from * grain_ns[grain]);
        rows_clear(rows, length, from + 1, to);
        if (grain == SHORT_GRAIN) {
            summary_merge(&track->open[LONG_GRAIN], &track->open[SHORT_GRAIN]);
        }
        track->open[grain] = nothing;
    }
}

/* Integrates f from the newest sample up to to_ns, bucket by bucket. */
static void advance(mass_history_t *history, int64_t to_ns)
{
    int64_t from_ns = history->at_ns;
    const int64_t held_until_ns = from_ns + history->hold_ns; /* no metric was sampled later */
    while (from_ns < to_ns) {
        int64_t stop_ns = to_ns; /* where nothing holds any more, one step crosses the gap */
        if (from_ns < held_until_ns) {
            const int64_t bucket = from_ns / grain_ns[SHORT_GRAIN];
            stop_ns = smaller(to_ns, (bucket + 1) * grain_ns[SHORT_GRAIN]);
            for (unsigned metric = 0; metric < history->metric_count; metric++) {
                track_t *track = track_in(history, metric);
                if (track->at_ns >= 0) {
                    summary_add(&track->open[SHORT_GRAIN], track->value, from_ns,
                                smaller(stop_ns, track->at_ns + history->hold_ns));
                }
            }
        }
        turn(history, SHORT_GRAIN, from_ns, stop_ns);
        turn(history, LONG_GRAIN, from_ns, stop_ns);
        from_ns = stop_ns;
    }
}

void mass_history_append(mass_history_t *history, int64_t at_ns, const double *values)
{
    assert(at_ns >= history->at_ns);
    if (history->sample_count > 0) {
        advance(history, at_ns);
    }
    const unsigned samples = lengths_in(history)->samples;
    const size_t position = history->sample_count & (samples - 1);
    history->at_ns = at_ns;
    times_in(history)[position] = at_ns;
    for (unsigned metric = 0; metric < history->metric_count; metric++) {
        track_t *track = track_in(history, metric);
        values_in(track)[position] = values[metric];
        if (!isnan(values[metric])) {
            track->value = values[metric];
            track->at_ns = at_ns;
        }
    }
    history->sample_count++;
    history->samples_held += history->samples_held < samples;
}

/* --- reading ------------------------------------------------------------------------------ */

/* Sums the window from raw samples, newest first; false when they do not reach its start. */
static int sum_samples(const mass_history_t *history, const track_t *track, int64_t start_ns,
                       int64_t now_ns, summary_t *out)
{
    const int64_t *times = times_in(history);
    const double *values = values_in(track);
    const uint64_t mask = lengths_in(history)->samples - 1U;
    const uint64_t oldest = history->sample_count - history->samples_held;
    const int64_t oldest_at_ns = times[oldest & mask];
    /* A forgotten sample can reach into the window only by being held. */
    const int whole = oldest == 0 || oldest_at_ns <= start_ns - history->hold_ns;
    if (!whole && oldest_at_ns > start_ns) {
        return 0;
    }
    const int64_t hold_ns = history->hold_ns;
    int64_t end_ns = now_ns;
    summary_t sum = nothing; /* local: nothing that is read here can alias it */
    for (uint64_t number = history->sample_count; number > oldest; number--) {
        const int64_t at_ns = times[(number - 1) & mask];
        const double value = values[(number - 1) & mask];
        if (isnan(value)) {
            continue;
        }
        summary_add(&sum, value, larger(at_ns, start_ns), smaller(end_ns, at_ns + hold_ns));
        if (at_ns <= start_ns) {
            *out = sum;
            return 1;
        }
        end_ns = at_ns;
    }
    *out = sum;
    return whole;
}

/* The start of the oldest bucket whose row is kept and was never forgotten. */
static int64_t reach_ns(const mass_history_t *history, int grain)
{
    const int64_t kept = history->at_ns / grain_ns[grain] - lengths_in(history)->rows[grain];
    return larger(kept, history->whole_from[grain]) * grain_ns[grain];
}

/* Sums the window from rows and the open buckets; its start moves back to the start of its row. */
static void sum_rows(const mass_history_t *history, const track_t *track, int64_t start_ns,
                     int64_t now_ns, summary_t *out)
{
    const int64_t short_start_ns = start_ns - start_ns % grain_ns[SHORT_GRAIN];
    const int64_t short_reach_ns = reach_ns(history, SHORT_GRAIN);
    const int grain = short_reach_ns <= short_start_ns ||
                              short_reach_ns <= reach_ns(history, LONG_GRAIN)
                          ? SHORT_GRAIN
                          : LONG_GRAIN;
    const int64_t first = start_ns / grain_ns[grain];
    const int64_t open = history->at_ns / grain_ns[grain];
    summary_t sum = nothing;
    summary_add(&sum, track->value, larger(history->at_ns, first * grain_ns[grain]), now_ns);
    if (open < first) {
        *out = sum;
        return;
    }
    for (int inner = SHORT_GRAIN; inner <= grain; inner++) {
        summary_merge(&sum, &track->open[inner]);
    }
    const lengths_t *lengths = lengths_in(history);
    const row_t *rows = rows_in(track, lengths, grain);
    const int64_t oldest = larger(first, open - lengths->rows[grain]);
    int64_t position = oldest % lengths->rows[grain];
    double value_ms = 0.0;
    int64_t covered_ms = 0;
    int found = 0;
    for (int64_t number = oldest; number < open; number++) {
        const row_t *row = &rows[position];
        if (!found && row->covered_ms > 0) {
            found = 1;
            summary_touch(&sum, (double)row->first,
                          number * grain_ns[grain] + row->first_ms * NS_PER_MS);
        }
        /* An empty row is neutral in all four, so the loop needs no branch for it. */
        sum.minimum = (double)row->minimum < sum.minimum ? (double)row->minimum : sum.minimum;
        sum.maximum = (double)row->maximum > sum.maximum ? (double)row->maximum : sum.maximum;
        value_ms += (double)row->mean * row->covered_ms;
        covered_ms += row->covered_ms;
        position = position + 1 == lengths->rows[grain] ? 0 : position + 1;
    }
    sum.sum += value_ms * (double)NS_PER_MS;
    sum.covered_ns += covered_ms * NS_PER_MS;
    *out = sum;
}

double mass_history_window(const mass_history_t *history, unsigned metric, mass_window_t function,
                           int64_t window_ns, int64_t now_ns)
{
    assert(metric < history->metric_count && window_ns > 0);
    const track_t *track = track_in(history, metric);
    now_ns = larger(now_ns, history->at_ns);
    if (track->at_ns < 0 || now_ns - track->at_ns >= history->hold_ns) {
        return NAN;
    }
    if (function == MASS_WINDOW_LAST) {
        return track->value;
    }
    const int64_t start_ns = larger(now_ns - window_ns, 0);
    summary_t summary;
    if (!sum_samples(history, track, start_ns, now_ns, &summary)) {
        sum_rows(history, track, start_ns, now_ns, &summary);
    }
    summary_touch(&summary, track->value, now_ns); /* the window is closed at its new end */
    const int64_t elapsed_ns = now_ns - summary.first_at_ns;
    switch (function) {
    case MASS_WINDOW_AVG:
        return summary_mean(&summary);
    case MASS_WINDOW_MIN:
        return summary.minimum;
    case MASS_WINDOW_MAX:
        return summary.maximum;
    case MASS_WINDOW_DELTA:
        return track->value - summary.first;
    case MASS_WINDOW_RATE:
        return elapsed_ns > 0 ? (track->value - summary.first) / ((double)elapsed_ns / 1e9) : NAN;
    case MASS_WINDOW_LAST:
        break;
    }
    return NAN;
}

static void prefetch(const void *from, size_t size)
{
    for (size_t offset = 0; offset < size; offset += 64) {
        __builtin_prefetch((const char *)from + offset);
    }
}

void mass_history_prefetch(const mass_history_t *history, unsigned metric, int64_t window_ns)
{
    const lengths_t *lengths = lengths_in(history);
    const track_t *track = track_in(history, metric);
    const int grain = window_ns <= lengths->rows[SHORT_GRAIN] * grain_ns[SHORT_GRAIN]
                          ? SHORT_GRAIN
                          : LONG_GRAIN;
    prefetch(times_in(history), lengths->samples * sizeof(int64_t));
    prefetch(track, sizeof(track_t) + lengths->samples * sizeof(double));
    prefetch(rows_in(track, lengths, grain), lengths->rows[grain] * sizeof(row_t));
}

/* --- levels and invariants ---------------------------------------------------------------- */

void mass_history_copy(mass_history_t *to, unsigned level, const mass_history_t *from)
{
    mass_history_init(to, from->metric_count, level, from->hold_ns);
    const lengths_t *wide = lengths_in(from);
    const lengths_t *narrow = lengths_in(to);
    to->sample_count = from->sample_count;
    to->at_ns = from->at_ns;
    to->samples_held = (uint32_t)smaller(from->samples_held, narrow->samples);
    const uint64_t oldest = to->sample_count - to->samples_held;
    for (uint64_t number = oldest; number < to->sample_count; number++) {
        times_in(to)[number % narrow->samples] = times_in(from)[number % wide->samples];
    }
    for (int grain = SHORT_GRAIN; grain <= LONG_GRAIN; grain++) {
        const int64_t open = from->at_ns / grain_ns[grain];
        const int64_t kept = smaller(wide->rows[grain], narrow->rows[grain]);
        to->whole_from[grain] = from->whole_from[grain];
        if (from->sample_count > 0) {
            to->whole_from[grain] = larger(from->whole_from[grain], open - kept);
        }
    }
    for (unsigned metric = 0; metric < to->metric_count; metric++) {
        const track_t *source = track_in(from, metric);
        track_t *target = track_in(to, metric);
        *target = *source;
        for (uint64_t number = oldest; number < to->sample_count; number++) {
            values_in(target)[number % narrow->samples] = values_in(source)[number % wide->samples];
        }
        for (int grain = SHORT_GRAIN; grain <= LONG_GRAIN; grain++) {
            const int64_t open = from->at_ns / grain_ns[grain];
            const int64_t kept = smaller(wide->rows[grain], narrow->rows[grain]);
            for (int64_t number = larger(open - kept, 0); number < open; number++) {
                rows_in(target, narrow, grain)[number % narrow->rows[grain]] =
                    rows_in(source, wide, grain)[number % wide->rows[grain]];
            }
        }
    }
}

static int track_check(const mass_history_t *history, const track_t *track)
{
    if (track->at_ns > history->at_ns || (track->at_ns >= 0) != !isnan(track->value)) {
        return 0;
    }
    for (int grain = SHORT_GRAIN; grain <= LONG_GRAIN; grain++) {
        const summary_t *open = &track->open[grain];
        if (open->covered_ns < 0 || open->covered_ns > grain_ns[grain] ||
            (open->covered_ns > 0 && open->minimum > open->maximum)) {
            return 0;
        }
        const row_t *rows = rows_in(track, lengths_in(history), grain);
        for (int64_t position = 0; position < lengths_in(history)->rows[grain]; position++) {
            const row_t *row = &rows[position];
            if (row->covered_ms * NS_PER_MS > grain_ns[grain] ||
                row->first_ms * NS_PER_MS >= grain_ns[grain] ||
                (row->covered_ms > 0 &&
                 !(row->minimum <= row->mean && row->mean <= row->maximum &&
                   row->minimum <= row->first && row->first <= row->maximum))) {
                return 0;
            }
        }
    }
    return 1;
}

int mass_history_check(const mass_history_t *history, unsigned metric_count, unsigned level)
{
    if (history->metric_count != metric_count || history->level != level) {
        return 0;
    }
    const uint64_t samples = lengths_in(history)->samples;
    if (history->samples_held > samples || history->samples_held > history->sample_count ||
        (history->sample_count > 0 && history->samples_held == 0)) {
        return 0;
    }
    int64_t before_ns = history->at_ns;
    for (uint64_t back = 1; back <= history->samples_held; back++) {
        const int64_t at_ns = times_in(history)[(history->sample_count - back) % samples];
        if (at_ns > before_ns || (back == 1 && at_ns != before_ns)) {
            return 0;
        }
        before_ns = at_ns;
    }
    for (unsigned metric = 0; metric < metric_count; metric++) {
        if (!track_check(history, track_in(history, metric))) {
            return 0;
        }
    }
    return 1;
}

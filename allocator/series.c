/* See series.h. The series itself is one block: the struct, then the directory of chunks. A chunk
 * is one block: its struct, then a column per metric, the times, the histories, the free list. */
#define _GNU_SOURCE
#include "series.h"

#include <assert.h>
#include <math.h>
#include <pthread.h>
#include <string.h>

#define SLOT_LIVE (-2)
#define SLOT_LAST (-1)
#define VALUE_MAX 1e30 /* no machine measures more, and a row's float still holds it */

_Static_assert(MASS_SERIES_LEVELS_MAX == MASS_HISTORY_LEVEL_NONE, "levels are those of history.h");
_Static_assert(MASS_SERIES_METRICS_MAX == MASS_HISTORY_METRICS_MAX, "metrics as in history.h");

typedef struct {
    uint32_t length;
    double *columns; /* metric m of slot s: columns[m * length + s] */
    int64_t *times;
    mass_history_t **histories;
    int32_t *links; /* SLOT_LIVE, or the next slot of the free list */
} chunk_t;

struct mass_series {
    pthread_mutex_t mutex;
    mass_pool_t *pool;
    mass_history_t *scratch; /* room for one history at level 0, to lay one out anew */
    int64_t hold_ns;
    size_t bytes_used;
    uint64_t stale_count;
    uint32_t metric_count;
    uint32_t history_count;
    uint32_t nodes_max;
    uint32_t node_count;
    uint32_t slot_count;
    uint32_t chunk_count;
    uint32_t level;
    int32_t free_slot;
    uint8_t metric_of[MASS_SERIES_METRICS_MAX]; /* track -> metric */
    int8_t track_of[MASS_SERIES_METRICS_MAX];   /* metric -> track, -1 without history */
    chunk_t *chunks[];
};

typedef struct {
    chunk_t *chunk;
    uint32_t row;
} place_t;

/* --- memory ------------------------------------------------------------------------------- */

static void *block_allocate(mass_series_t *series, size_t size)
{
    void *block = mass_pool_allocate(series->pool, size);
    if (block != NULL) {
        series->bytes_used += mass_pool_size_of(series->pool, block);
    }
    return block;
}

static void block_free(mass_series_t *series, void *block)
{
    if (block != NULL) {
        series->bytes_used -= mass_pool_size_of(series->pool, block);
        mass_pool_free(series->pool, block);
    }
}

static void *block_resize(mass_series_t *series, void *block, size_t size)
{
    const size_t before = mass_pool_size_of(series->pool, block);
    void *resized = mass_pool_reallocate(series->pool, block, size);
    if (resized != NULL) {
        series->bytes_used += mass_pool_size_of(series->pool, resized);
        series->bytes_used -= before;
    }
    return resized;
}

static size_t history_size(const mass_series_t *series, uint32_t level)
{
    return series->history_count == 0 ? 0 : mass_history_size(series->history_count, level);
}

static place_t place_of(const mass_series_t *series, uint32_t slot)
{
    place_t place = {
        .chunk = series->chunks[slot / MASS_SERIES_CHUNK_SLOTS],
        .row = slot % MASS_SERIES_CHUNK_SLOTS,
    };
    return place;
}

static int is_live(const mass_series_t *series, int32_t slot)
{
    if (slot < 0 || (uint32_t)slot >= series->slot_count) {
        return 0;
    }
    const place_t place = place_of(series, (uint32_t)slot);
    return place.chunk->links[place.row] == SLOT_LIVE;
}

static void slot_clear(mass_series_t *series, place_t place)
{
    for (uint32_t metric = 0; metric < series->metric_count; metric++) {
        place.chunk->columns[(size_t)metric * place.chunk->length + place.row] = NAN;
    }
    place.chunk->times[place.row] = 0;
    place.chunk->histories[place.row] = NULL;
}

/* --- life --------------------------------------------------------------------------------- */

static size_t fixed_size(uint32_t nodes_max)
{
    const size_t chunks_max = (nodes_max + MASS_SERIES_CHUNK_SLOTS - 1) / MASS_SERIES_CHUNK_SLOTS;
    return sizeof(mass_series_t) + chunks_max * sizeof(chunk_t *);
}

static size_t chunk_size(uint32_t metric_count, uint32_t length)
{
    return sizeof(chunk_t) + length * (metric_count * sizeof(double) + sizeof(int64_t) +
                                       sizeof(mass_history_t *) + sizeof(int32_t));
}

static size_t granules(size_t size)
{
    return (size + MASS_POOL_ALIGNMENT - 1) / MASS_POOL_ALIGNMENT * MASS_POOL_ALIGNMENT;
}

size_t mass_series_size(uint32_t metric_count, uint32_t history_count, uint32_t nodes_max)
{
    if (metric_count < 1 || metric_count > MASS_SERIES_METRICS_MAX ||
        history_count > metric_count || nodes_max < 1 || nodes_max > MASS_SERIES_NODES_MAX) {
        return 0;
    }
    const size_t history =
        history_count == 0 ? 0 : granules(mass_history_size(history_count, 0));
    const size_t whole_chunks = nodes_max / MASS_SERIES_CHUNK_SLOTS;
    const uint32_t rest = nodes_max % MASS_SERIES_CHUNK_SLOTS;
    return granules(fixed_size(nodes_max)) + history * ((size_t)nodes_max + 1) +
           whole_chunks * granules(chunk_size(metric_count, MASS_SERIES_CHUNK_SLOTS)) +
           (rest > 0 ? granules(chunk_size(metric_count, rest)) : 0);
}

mass_series_t *mass_series_create(mass_pool_t *pool, uint32_t metric_count, uint64_t history_mask,
                                  uint32_t nodes_max, int64_t hold_ns)
{
    if (metric_count < 1 || metric_count > MASS_SERIES_METRICS_MAX || nodes_max < 1 ||
        nodes_max > MASS_SERIES_NODES_MAX || hold_ns < 1 || hold_ns > MASS_SERIES_HOLD_NS_MAX ||
        (metric_count < 64 && history_mask >> metric_count != 0)) {
        return NULL;
    }
    const size_t size = fixed_size(nodes_max);
    mass_series_t *series = mass_pool_allocate(pool, size);
    if (series == NULL) {
        return NULL;
    }
    memset(series, 0, size);
    series->pool = pool;
    series->hold_ns = hold_ns;
    series->bytes_used = mass_pool_size_of(pool, series);
    series->metric_count = metric_count;
    series->nodes_max = nodes_max;
    series->free_slot = SLOT_LAST;
    for (uint32_t metric = 0; metric < metric_count; metric++) {
        series->track_of[metric] = -1;
        if (history_mask >> metric & 1) {
            series->track_of[metric] = (int8_t)series->history_count;
            series->metric_of[series->history_count++] = (uint8_t)metric;
        }
    }
    if (series->history_count > 0) {
        series->scratch = block_allocate(series, history_size(series, 0));
    }
    if ((series->history_count > 0 && series->scratch == NULL) ||
        pthread_mutex_init(&series->mutex, NULL) != 0) {
        block_free(series, series->scratch);
        mass_pool_free(pool, series);
        return NULL;
    }
    return series;
}

void mass_series_destroy(mass_series_t *series)
{
    if (series == NULL) {
        return;
    }
    for (uint32_t slot = 0; slot < series->slot_count; slot++) {
        const place_t place = place_of(series, slot);
        block_free(series, place.chunk->histories[place.row]);
    }
    for (uint32_t chunk = 0; chunk < series->chunk_count; chunk++) {
        block_free(series, series->chunks[chunk]);
    }
    block_free(series, series->scratch);
    assert(series->bytes_used == mass_pool_size_of(series->pool, series));
    pthread_mutex_destroy(&series->mutex);
    mass_pool_free(series->pool, series);
}

/* Makes room for slot number slot_count; 0 when the pool has none. */
static int chunk_add(mass_series_t *series)
{
    const uint32_t left = series->nodes_max - series->chunk_count * MASS_SERIES_CHUNK_SLOTS;
    const uint32_t length = left < MASS_SERIES_CHUNK_SLOTS ? left : MASS_SERIES_CHUNK_SLOTS;
    chunk_t *chunk = block_allocate(series, chunk_size(series->metric_count, length));
    if (chunk == NULL) {
        return 0;
    }
    chunk->length = length;
    chunk->columns = (double *)(chunk + 1);
    chunk->times = (int64_t *)(chunk->columns + (size_t)series->metric_count * length);
    chunk->histories = (mass_history_t **)(chunk->times + length);
    chunk->links = (int32_t *)(chunk->histories + length);
    for (uint32_t row = 0; row < length; row++) {
        const place_t place = {chunk, row};
        slot_clear(series, place);
        chunk->links[row] = SLOT_LAST;
    }
    series->chunks[series->chunk_count++] = chunk;
    return 1;
}

static int32_t add_node(mass_series_t *series)
{
    if (series->node_count == series->nodes_max) {
        return MASS_SERIES_E_NODES_FULL;
    }
    const uint32_t slot =
        series->free_slot >= 0 ? (uint32_t)series->free_slot : series->slot_count;
    const int needs_chunk = slot / MASS_SERIES_CHUNK_SLOTS == series->chunk_count;
    if (needs_chunk && !chunk_add(series)) {
        return MASS_SERIES_E_EXHAUSTED;
    }
    const place_t place = place_of(series, slot);
    const size_t size = history_size(series, series->level);
    if (size > 0) {
        mass_history_t *history = block_allocate(series, size);
        if (history == NULL) {
            if (needs_chunk) {
                block_free(series, series->chunks[--series->chunk_count]);
            }
            return MASS_SERIES_E_EXHAUSTED;
        }
        mass_history_init(history, series->history_count, series->level, series->hold_ns);
        place.chunk->histories[place.row] = history;
    }
    if (slot == series->slot_count) {
        series->slot_count++;
    } else {
        series->free_slot = place.chunk->links[place.row];
    }
    place.chunk->links[place.row] = SLOT_LIVE;
    series->node_count++;
    return (int32_t)slot;
}

int32_t mass_series_add_node(mass_series_t *series)
{
    pthread_mutex_lock(&series->mutex);
    const int32_t slot = add_node(series);
    pthread_mutex_unlock(&series->mutex);
    return slot;
}

int mass_series_remove_node(mass_series_t *series, int32_t slot)
{
    int code = MASS_SERIES_E_SLOT;
    pthread_mutex_lock(&series->mutex);
    if (is_live(series, slot)) {
        const place_t place = place_of(series, (uint32_t)slot);
        block_free(series, place.chunk->histories[place.row]);
        slot_clear(series, place);
        place.chunk->links[place.row] = series->free_slot;
        series->free_slot = slot;
        series->node_count--;
        code = MASS_SERIES_OK;
    }
    pthread_mutex_unlock(&series->mutex);
    return code;
}

/* --- samples ------------------------------------------------------------------------------ */

static int record(mass_series_t *series, int32_t slot, int64_t at_ns, const double *values)
{
    if (at_ns < 1 || at_ns > MASS_SERIES_AT_NS_MAX) {
        return MASS_SERIES_E_ARGUMENT;
    }
    if (!is_live(series, slot)) {
        return MASS_SERIES_E_SLOT;
    }
    const place_t place = place_of(series, (uint32_t)slot);
    chunk_t *chunk = place.chunk;
    if (at_ns < chunk->times[place.row]) {
        series->stale_count++;
        return MASS_SERIES_STALE;
    }
    chunk->times[place.row] = at_ns;
    for (uint32_t metric = 0; metric < series->metric_count; metric++) {
        const double value = values[metric];
        /* Written so that a NaN fails the comparison as well. */
        chunk->columns[(size_t)metric * chunk->length + place.row] =
            fabs(value) <= VALUE_MAX ? value : NAN;
    }
    mass_history_t *history = chunk->histories[place.row];
    if (history != NULL) {
        double tracked[MASS_SERIES_METRICS_MAX];
        for (uint32_t track = 0; track < series->history_count; track++) {
            const double value = values[series->metric_of[track]];
            tracked[track] = fabs(value) <= VALUE_MAX ? value : NAN;
        }
        mass_history_append(history, at_ns, tracked);
    }
    return MASS_SERIES_OK;
}

int mass_series_record(mass_series_t *series, int32_t slot, int64_t at_ns, const double *values)
{
    pthread_mutex_lock(&series->mutex);
    const int code = record(series, slot, at_ns, values);
    pthread_mutex_unlock(&series->mutex);
    return code;
}

/* Answers from the latest value alone, for a metric or a level without histories. */
static double latest_window(const mass_series_t *series, place_t place, mass_window_t function,
                            uint32_t metric, int64_t now_ns)
{
    const int64_t at_ns = place.chunk->times[place.row];
    if (at_ns == 0 || now_ns - at_ns >= series->hold_ns || function == MASS_WINDOW_DELTA ||
        function == MASS_WINDOW_RATE) {
        return NAN;
    }
    return place.chunk->columns[(size_t)metric * place.chunk->length + place.row];
}

static place_t place_at(const mass_series_t *series, const int32_t *slots, size_t i)
{
    return place_of(series, slots != NULL ? (uint32_t)slots[i] : (uint32_t)i);
}

/* Loads the head of a node eight places ahead, then, with its head there, its body two ahead. */
static void prefetch(const mass_series_t *series, const int32_t *slots, size_t i, size_t count,
                     unsigned track, int64_t window_ns)
{
    if (i + 8 < count) {
        const place_t place = place_at(series, slots, i + 8);
        __builtin_prefetch(place.chunk->histories[place.row]);
    }
    if (i + 2 < count) {
        const place_t place = place_at(series, slots, i + 2);
        if (place.chunk->histories[place.row] != NULL) {
            mass_history_prefetch(place.chunk->histories[place.row], track, window_ns);
        }
    }
}

static int window(const mass_series_t *series, int function, uint32_t metric, int64_t window_ns,
                  int64_t now_ns, const int32_t *slots, size_t count, double *out)
{
    if (function < MASS_WINDOW_AVG || function > MASS_WINDOW_RATE ||
        metric >= series->metric_count || window_ns < 1 || window_ns > MASS_SERIES_WINDOW_NS_MAX ||
        now_ns < 0 || now_ns > MASS_SERIES_AT_NS_MAX) {
        return MASS_SERIES_E_ARGUMENT;
    }
    if (slots == NULL && count > series->slot_count) {
        return MASS_SERIES_E_SLOT;
    }
    for (size_t i = 0; slots != NULL && i < count; i++) {
        if (slots[i] < 0 || (uint32_t)slots[i] >= series->slot_count) {
            return MASS_SERIES_E_SLOT;
        }
    }
    const int track = series->track_of[metric];
    for (size_t i = 0; i < count; i++) {
        if (track >= 0 && function != MASS_WINDOW_LAST) {
            prefetch(series, slots, i, count, (unsigned)track, window_ns);
        }
        const place_t place = place_at(series, slots, i);
        const mass_history_t *history = place.chunk->histories[place.row];
        if (history == NULL || track < 0) {
            out[i] = latest_window(series, place, (mass_window_t)function, metric, now_ns);
        } else {
            out[i] = mass_history_window(history, (unsigned)track, (mass_window_t)function,
                                         window_ns, now_ns);
        }
    }
    return MASS_SERIES_OK;
}

int mass_series_window(mass_series_t *series, int function, uint32_t metric, int64_t window_ns,
                       int64_t now_ns, const int32_t *slots, size_t count, double *out)
{
    pthread_mutex_lock(&series->mutex);
    const int code = window(series, function, metric, window_ns, now_ns, slots, count, out);
    pthread_mutex_unlock(&series->mutex);
    return code;
}

/* --- levels ------------------------------------------------------------------------------- */

static void history_shorten(mass_series_t *series, mass_history_t **history, uint32_t level)
{
    if (level == MASS_SERIES_LEVELS_MAX) {
        block_free(series, *history);
        *history = NULL;
        return;
    }
    memcpy(series->scratch, *history, history_size(series, level - 1));
    mass_history_copy(*history, level, series->scratch);
    mass_history_t *resized = block_resize(series, *history, history_size(series, level));
    if (resized != NULL) { /* a block that stays too long holds a shorter history as well */
        *history = resized;
    }
}

size_t mass_series_shorten(mass_series_t *series)
{
    pthread_mutex_lock(&series->mutex);
    const size_t before = series->bytes_used;
    if (series->level < MASS_SERIES_LEVELS_MAX) {
        series->level++;
        for (uint32_t slot = 0; slot < series->slot_count; slot++) {
            const place_t place = place_of(series, slot);
            if (place.chunk->histories[place.row] != NULL) {
                history_shorten(series, &place.chunk->histories[place.row], series->level);
            }
        }
    }
    const size_t freed = before - series->bytes_used;
    pthread_mutex_unlock(&series->mutex);
    return freed;
}

/* Lays one history out at `level`, one below the present; 0 when the pool has no room. */
static int history_lengthen(mass_series_t *series, mass_history_t **history, uint32_t level)
{
    const size_t size = history_size(series, level);
    if (*history == NULL) {
        *history = block_allocate(series, size);
        if (*history != NULL) {
            mass_history_init(*history, series->history_count, level, series->hold_ns);
        }
        return *history != NULL;
    }
    memcpy(series->scratch, *history, history_size(series, level + 1));
    mass_history_t *resized = block_resize(series, *history, size);
    if (resized == NULL) {
        return 0;
    }
    mass_history_copy(resized, level, series->scratch);
    *history = resized;
    return 1;
}

int mass_series_lengthen(mass_series_t *series)
{
    int code = MASS_SERIES_OK;
    pthread_mutex_lock(&series->mutex);
    const uint32_t level = series->level;
    uint32_t done = 0;
    if (level > 0 && series->history_count > 0) {
        for (; done < series->slot_count && code == MASS_SERIES_OK; done++) {
            const place_t place = place_of(series, done);
            if (place.chunk->links[place.row] == SLOT_LIVE &&
                !history_lengthen(series, &place.chunk->histories[place.row], level - 1)) {
                code = MASS_SERIES_E_EXHAUSTED;
                break;
            }
        }
        /* All nodes or none: one level describes them all. Nothing is lost on the way back. */
        for (uint32_t slot = 0; slot < done && code != MASS_SERIES_OK; slot++) {
            const place_t place = place_of(series, slot);
            if (place.chunk->links[place.row] == SLOT_LIVE) {
                history_shorten(series, &place.chunk->histories[place.row], level);
            }
        }
    }
    if (level > 0 && code == MASS_SERIES_OK) {
        series->level = level - 1;
    }
    pthread_mutex_unlock(&series->mutex);
    return code;
}

/* --- reading ------------------------------------------------------------------------------ */

const double *mass_series_column(mass_series_t *series, uint32_t chunk, uint32_t metric)
{
    pthread_mutex_lock(&series->mutex);
    const double *column = NULL;
    if (chunk < series->chunk_count && metric < series->metric_count) {
        column = series->chunks[chunk]->columns + (size_t)metric * series->chunks[chunk]->length;
    }
    pthread_mutex_unlock(&series->mutex);
    return column;
}

const int64_t *mass_series_times(mass_series_t *series, uint32_t chunk)
{
    pthread_mutex_lock(&series->mutex);
    const int64_t *times = chunk < series->chunk_count ? series->chunks[chunk]->times : NULL;
    pthread_mutex_unlock(&series->mutex);
    return times;
}

uint32_t mass_series_chunk_length(mass_series_t *series, uint32_t chunk)
{
    pthread_mutex_lock(&series->mutex);
    const uint32_t length = chunk < series->chunk_count ? series->chunks[chunk]->length : 0;
    pthread_mutex_unlock(&series->mutex);
    return length;
}

void mass_series_statistics(mass_series_t *series, mass_series_statistics_t *out)
{
    pthread_mutex_lock(&series->mutex);
    out->bytes_used = series->bytes_used;
    out->history_size_bytes = history_size(series, series->level);
    out->stale_count = series->stale_count;
    out->node_count = series->node_count;
    out->slot_count = series->slot_count;
    out->chunk_count = series->chunk_count;
    out->level = series->level;
    pthread_mutex_unlock(&series->mutex);
}

static int slot_check(const mass_series_t *series, place_t place)
{
    const chunk_t *chunk = place.chunk;
    const mass_history_t *history = chunk->histories[place.row];
    const int live = chunk->links[place.row] == SLOT_LIVE;
    if ((history != NULL) != (live && history_size(series, series->level) > 0) ||
        (history != NULL && !mass_history_check(history, series->history_count, series->level))) {
        return 0;
    }
    for (uint32_t metric = 0; metric < series->metric_count; metric++) {
        const double value = chunk->columns[(size_t)metric * chunk->length + place.row];
        if (!isnan(value) && (chunk->times[place.row] == 0 || !(fabs(value) <= VALUE_MAX))) {
            return 0;
        }
    }
    return live || chunk->times[place.row] == 0;
}

static int check(const mass_series_t *series)
{
    size_t bytes = mass_pool_size_of(series->pool, series);
    bytes += series->scratch != NULL ? mass_pool_size_of(series->pool, series->scratch) : 0;
    for (uint32_t chunk = 0; chunk < series->chunk_count; chunk++) {
        bytes += mass_pool_size_of(series->pool, series->chunks[chunk]);
    }
    uint32_t live_count = 0;
    for (uint32_t slot = 0; slot < series->slot_count; slot++) {
        const place_t place = place_of(series, slot);
        if (!slot_check(series, place)) {
            return 0;
        }
        if (place.chunk->histories[place.row] != NULL) {
            bytes += mass_pool_size_of(series->pool, place.chunk->histories[place.row]);
        }
        live_count += place.chunk->links[place.row] == SLOT_LIVE;
    }
    uint32_t free_count = 0;
    for (int32_t slot = series->free_slot; slot != SLOT_LAST; free_count++) {
        if (slot < 0 || (uint32_t)slot >= series->slot_count || is_live(series, slot) ||
            free_count >= series->slot_count) {
            return 0;
        }
        const place_t place = place_of(series, (uint32_t)slot);
        slot = place.chunk->links[place.row];
    }
    return bytes == series->bytes_used && live_count == series->node_count &&
           live_count + free_count == series->slot_count;
}

int mass_series_check(mass_series_t *series)
{
    pthread_mutex_lock(&series->mutex);
    const int sound = check(series);
    pthread_mutex_unlock(&series->mutex);
    return sound;
}

/* A long random run over series and ledger for the sanitizers. The pool is replaced by malloc, so
 * that every block has red zones around it, and allocation fails now and then on purpose.
 * Usage: series_driver SEED STEPS; prints "ok" or aborts. */
#define _GNU_SOURCE
#include <malloc.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "ledger.h"
#include "series.h"

#define NODES 1030
#define METRICS 7
#define HANDLES 600
#define SECOND 1000000000LL

static uint64_t state;
static size_t blocks_live;
static int is_failing;

static uint32_t roll(uint32_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)((state >> 20) % below);
}

void *mass_pool_allocate(mass_pool_t *pool, size_t size)
{
    (void)pool;
    if (is_failing && roll(3) == 0) {
        return NULL;
    }
    blocks_live++;
    return malloc(size);
}

void *mass_pool_reallocate(mass_pool_t *pool, void *block, size_t size)
{
    (void)pool;
    return is_failing && roll(50) == 0 ? NULL : realloc(block, size);
}

int mass_pool_free(mass_pool_t *pool, void *block)
{
    (void)pool;
    blocks_live -= block != NULL;
    free(block);
    return 0;
}

size_t mass_pool_size_of(mass_pool_t *pool, const void *block)
{
    (void)pool;
    return malloc_usable_size((void *)(uintptr_t)block);
}

static void require(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "failed: %s\n", what);
        abort();
    }
}

static void ask_windows(mass_series_t *series, int64_t now_ns, double *out)
{
    mass_series_statistics_t seen;
    mass_series_statistics(series, &seen);
    const int64_t window_ns = 1 + (int64_t)(roll(3600) + 1) * SECOND - SECOND / 2;
    const uint32_t metric = roll(METRICS);
    for (int function = MASS_WINDOW_AVG; function <= MASS_WINDOW_RATE; function++) {
        require(mass_series_window(series, function, metric, window_ns, now_ns, NULL,
                                   seen.slot_count, out) == MASS_SERIES_OK, "window");
    }
}

static void run_series(uint32_t steps)
{
    is_failing = 0;
    mass_series_t *series = mass_series_create(NULL, METRICS, 0x5b, NODES, 30 * SECOND);
    is_failing = 1;
    require(series != NULL, "create");
    int64_t now_ns = 1700000000LL * SECOND;
    static double out[NODES];
    for (uint32_t step = 0; step < steps; step++) {
        const uint32_t what = roll(100);
        const int32_t slot = (int32_t)roll(NODES);
        if (what < 20) {
            mass_series_add_node(series);
        } else if (what < 24) {
            mass_series_remove_node(series, slot);
        } else if (what < 95) {
            double values[METRICS];
            for (int i = 0; i < METRICS; i++) {
                values[i] = roll(10) == 0 ? NAN : (double)roll(1000000);
            }
            const int32_t near = (int32_t)roll(4);
            now_ns += roll(200) == 0 ? roll(7200) * SECOND : (int64_t)roll(1500000000);
            mass_series_record(series, roll(3) ? near : slot, now_ns - roll(2), values);
        } else if (what < 97) {
            ask_windows(series, now_ns, out);
        } else if (roll(20) == 0) {
            mass_series_shorten(series);
        } else if (roll(20) == 0) {
            mass_series_lengthen(series);
        }
        if (step % 500 == 0) {
            require(mass_series_check(series), "series check");
        }
    }
    require(mass_series_check(series), "series check");
    mass_series_destroy(series);
}

static void run_ledger(uint32_t steps)
{
    is_failing = 0;
    mass_ledger_t *ledger = mass_ledger_create(NULL, 40, 500);
    is_failing = 1;
    require(ledger != NULL, "create");
    int64_t handles[HANDLES] = {0};
    mass_ledger_entry_t entries[100];
    for (uint32_t step = 0; step < steps; step++) {
        const uint32_t what = roll(100);
        int64_t *handle = &handles[roll(HANDLES)];
        const int32_t slot = (int32_t)roll(42) - 1;
        const int64_t bytes = (int64_t)roll(1000) - 2;
        if (what < 5) {
            mass_ledger_set_node(ledger, slot, bytes * 30);
        } else if (what < 8) {
            mass_ledger_clear_node(ledger, slot);
        } else if (what < 50) {
            mass_ledger_release(ledger, *handle);
            *handle = mass_ledger_reserve(ledger, slot, bytes, step, 1);
        } else if (what < 70) {
            mass_ledger_resize(ledger, *handle, bytes);
        } else if (what < 90) {
            mass_ledger_measure(ledger, *handle, bytes);
        } else {
            mass_ledger_walk(ledger, slot, entries, 100);
        }
        if (step % 50 == 0) {
            require(mass_ledger_check(ledger), "ledger check");
        }
    }
    require(mass_ledger_check(ledger), "ledger check");
    mass_ledger_destroy(ledger);
}

int main(int count, char **words)
{
    require(count == 3, "usage: series_driver SEED STEPS");
    state = strtoull(words[1], NULL, 10) * 2654435761U + 1;
    const uint32_t steps = (uint32_t)strtoul(words[2], NULL, 10);
    run_series(steps);
    run_ledger(steps);
    require(blocks_live == 0, "every block was given back");
    puts("ok");
    return 0;
}

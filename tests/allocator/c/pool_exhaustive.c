/* Goal: no short sequence of calls on a tiny pool breaks it or is answered wrongly.
 * Method: every sequence up to a depth, as a tree. A pool over the caller's memory is all in that
 * memory, so a copy of it is a snapshot: each branch starts from one. A map of granules is the
 * model: it says whether a call must succeed (blocks below 2 KiB are found exactly), and the pool's
 * own walk must tile the heap the same way.
 * Usage: pool_exhaustive GRANULES DEPTH SIZE..., sizes in granules.
 */
#include "expect.h"
#include "memory_allocator.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { GRANULE = 16, WORDS = GRANULE / 4, GRANULES_MAX = 256, MEMORY_BYTES = 16384 };
enum { SLOTS = 3, SIZES_MAX = 6 };

typedef struct {
    void *block[SLOTS];
    int count[SLOTS];
} slots_t;

static _Alignas(16) unsigned char memory[MEMORY_BYTES];
static mass_pool_t *pool;
static size_t pool_bytes;
static unsigned char *heap;
static int granules, sizes[SIZES_MAX], size_count;
static long step_count;

/* Each word says its place too, so that bytes moved to a wrong place are found. */
static uint32_t word_at(int slot, int i) { return (uint32_t)(slot * 100000 + i + 1); }

static void fill(const slots_t *s, int slot) {
    uint32_t *words = s->block[slot];
    for (int i = 0; i < s->count[slot] * WORDS; i++) {
        words[i] = word_at(slot, i);
    }
}

static bool is_intact(const void *block, int slot, int count) {
    const uint32_t *words = block;
    for (int i = 0; i < count * WORDS; i++) {
        if (words[i] != word_at(slot, i)) {
            return false;
        }
    }
    return true;
}

/* The runs of free granules that the slots leave: the longest, and whether `slot` can grow. */
static void map_of(const slots_t *s, bool *taken) {
    memset(taken, 0, GRANULES_MAX);
    for (int slot = 0; slot < SLOTS; slot++) {
        if (s->block[slot] != NULL) {
            long start = ((unsigned char *)s->block[slot] - heap) / GRANULE;
            EXPECT(start >= 0 && start + s->count[slot] <= granules);
            for (int i = 0; i < s->count[slot]; i++) {
                EXPECT(!taken[start + i]);
                taken[start + i] = true;
            }
        }
    }
}

static int longest_run(const bool *taken) {
    int longest = 0;
    int run = 0;
    for (int i = 0; i < granules; i++) {
        run = taken[i] ? 0 : run + 1;
        longest = run > longest ? run : longest;
    }
    return longest;
}

/* A block may grow into a fresh run, or into the free granules on both of its own sides. */
static bool can_grow(const slots_t *s, int slot, int count) {
    bool taken[GRANULES_MAX];
    map_of(s, taken);
    if (longest_run(taken) >= count) {
        return true;
    }
    slots_t without = *s;
    without.block[slot] = NULL;
    map_of(&without, taken);
    long first = ((unsigned char *)s->block[slot] - heap) / GRANULE;
    long past = first + s->count[slot];
    while (first > 0 && !taken[first - 1]) {
        first--;
    }
    while (past < granules && !taken[past]) {
        past++;
    }
    return past - first >= count;
}

typedef struct {
    const bool *taken;
    int at;
    bool was_free;
} tiling_t;

static int visit(void *context, void *block, size_t bytes, int is_live) {
    tiling_t *tiling = context;
    EXPECT((unsigned char *)block == heap + tiling->at * GRANULE);
    for (size_t i = 0; i < bytes / GRANULE; i++) {
        EXPECT(tiling->taken[tiling->at++] == (is_live != 0));
    }
    EXPECT(is_live != 0 || !tiling->was_free);
    tiling->was_free = is_live == 0;
    return 0;
}

static void verify(const slots_t *s) {
    bool taken[GRANULES_MAX];
    map_of(s, taken);
    tiling_t tiling = {taken, 0, false};
    step_count++;
    EXPECT(mass_pool_check(pool) == MASS_POOL_OK);
    EXPECT(mass_pool_walk(pool, visit, &tiling) == 0);
    EXPECT(tiling.at == granules);
    for (int slot = 0; slot < SLOTS; slot++) {
        EXPECT(s->block[slot] == NULL || is_intact(s->block[slot], slot, s->count[slot]));
    }
}

static void allocate(slots_t *s, int slot, int count) {
    bool taken[GRANULES_MAX];
    map_of(s, taken);
    s->block[slot] = mass_pool_allocate(pool, (size_t)count * GRANULE);
    EXPECT((s->block[slot] != NULL) == (longest_run(taken) >= count));
    if (s->block[slot] != NULL) {
        s->count[slot] = count;
        fill(s, slot);
    }
}

static void reallocate(slots_t *s, int slot, int count) {
    int old = s->count[slot];
    bool possible = count <= old || can_grow(s, slot, count);
    void *moved = mass_pool_reallocate(pool, s->block[slot], (size_t)count * GRANULE);
    EXPECT((moved != NULL) == possible);
    EXPECT(count > old || moved == s->block[slot]);
    if (moved != NULL) {
        EXPECT(is_intact(moved, slot, count < old ? count : old));
        s->block[slot] = moved;
        s->count[slot] = count;
        fill(s, slot);
    }
}

static void explore(slots_t s, int depth) {
    unsigned char snapshot[MEMORY_BYTES];
    verify(&s);
    if (depth == 0) {
        return;
    }
    memcpy(snapshot, memory, pool_bytes);
    for (int slot = 0; slot < SLOTS; slot++) {
        bool is_first_free = s.block[slot] == NULL && (slot == 0 || s.block[slot - 1] != NULL);
        for (int i = 0; i < size_count; i++) {
            slots_t next = s;
            if (s.block[slot] != NULL) {
                reallocate(&next, slot, sizes[i]);
            } else if (is_first_free) { /* the other empty slots would only repeat it */
                allocate(&next, slot, sizes[i]);
            } else {
                continue;
            }
            explore(next, depth - 1);
            memcpy(memory, snapshot, pool_bytes);
        }
        if (s.block[slot] != NULL) {
            slots_t next = s;
            next.block[slot] = NULL;
            EXPECT(mass_pool_free(pool, s.block[slot]) == MASS_POOL_OK);
            EXPECT(mass_pool_free(pool, s.block[slot]) == MASS_POOL_E_DOUBLE_FREE);
            explore(next, depth - 1);
            memcpy(memory, snapshot, pool_bytes);
        }
    }
}

static int find_heap(void *context, void *block, size_t bytes, int is_live) {
    (void)context;
    EXPECT(bytes == (size_t)granules * GRANULE && !is_live);
    heap = block;
    return 0;
}

int main(int argc, char **argv) {
    EXPECT(argc > 3 && argc - 3 <= SIZES_MAX);
    granules = atoi(argv[1]);
    EXPECT(granules <= GRANULES_MAX);
    for (int i = 3; i < argc; i++) {
        sizes[size_count++] = atoi(argv[i]);
    }
    mass_pool_statistics_t now = {0};
    for (pool_bytes = GRANULE; now.capacity_bytes < (size_t)granules * GRANULE;) {
        pool_bytes += GRANULE;
        EXPECT(pool_bytes <= MEMORY_BYTES);
        pool = mass_pool_create_over(memory, pool_bytes);
        if (pool != NULL) {
            mass_pool_statistics(pool, &now);
        }
    }
    mass_pool_walk(pool, find_heap, NULL);
    explore((slots_t){{0}, {0}}, atoi(argv[2]));
    printf("%ld states\n", step_count);
    return 0;
}

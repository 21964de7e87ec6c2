/* Internal to memory_allocator.c, which tells the idea: the pool's state, and the cells, two bits
 * per granule, that know every block. Nothing here looks into the heap.
 */
#ifndef MASS_POOL_STATE_H
#define MASS_POOL_STATE_H

#include "memory_allocator.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>

#define GRANULE ((size_t)MASS_POOL_ALIGNMENT)
#define CELL_GRANULES 64U
#define COVERED_START_MAX ((uint64_t)1 << 40)
#define ALL_ONES (~(uint64_t)0)
#define LISTS_PER_GROUP 64U
#define GROUPS_MAX 28U

#define likely(condition) __builtin_expect((condition), 1)
#define unlikely(condition) __builtin_expect((condition), 0)

typedef uint32_t granule_t; /* a granule's number, or a count of granules */

typedef struct {
    uint64_t start;
    uint64_t used;
} cell_t;

/* A reference to a free block, as it lies in heads and in free memory: the granule combined with
 * the pool's key, so that memory zeroed after free does not read as "none". */
typedef uint32_t __attribute__((may_alias)) link_t;

typedef struct __attribute__((may_alias)) {
    link_t next;
    link_t previous;
} links_t;

struct mass_pool {
    atomic_uint lock;             /* 1: held */
    atomic_uint waiting;          /* threads that found it held */
    link_t key;                   /* the link to no block */
    uintptr_t origin;             /* address of granule 0, which is not memory */
    granule_t granule_count;      /* N; granules 0 and N + 1 are fences */
    unsigned group_count;
    cell_t *cells;                /* one spare before the first and one behind the last */
    link_t *heads;                /* [group][list] */
    links_t nobody;               /* stands in for the neighbour of the last block of a list */
    size_t used;                  /* granules in live blocks, now and at most */
    size_t used_peak;
    size_t live_count;
    uint64_t allocation_count, reallocation_count, free_count;
    uint64_t failure_count, wrong_free_count, damage_count;
    void *mapping;                /* own mapping, or NULL over the caller's memory */
    size_t mapping_bytes;
    uint64_t group_map;           /* groups with a list that is not empty */
    uint64_t list_map[GROUPS_MAX];
};

static_assert(MASS_POOL_BYTES_MAX / MASS_POOL_ALIGNMENT <= (uint64_t)1 << 32, "32-bit granules");
static_assert(sizeof(links_t) <= MASS_POOL_ALIGNMENT, "links fit the smallest block");

static inline uint64_t bit(granule_t g) { return (uint64_t)1 << (g % CELL_GRANULES); }

static inline unsigned lowest(uint64_t word) { return (unsigned)__builtin_ctzll(word); }

static inline unsigned highest(uint64_t word) { return 63U ^ (unsigned)__builtin_clzll(word); }

static inline cell_t *cell_of(const mass_pool_t *pool, granule_t g) {
    return &pool->cells[g / CELL_GRANULES];
}

static inline bool is_covered(const cell_t *cell) {
    return cell->used == ALL_ONES && cell->start < COVERED_START_MAX;
}

static inline bool is_start(const mass_pool_t *pool, granule_t g) {
    const cell_t *cell = cell_of(pool, g);
    return (cell->start & bit(g)) != 0 && !is_covered(cell);
}

/* g is known to start a block. */
static inline bool is_live(const mass_pool_t *pool, granule_t g) {
    return (cell_of(pool, g)->used & bit(g)) != 0;
}

/* The length of the block that starts at g. Shifting the two cells together finds the next start
 * bit without asking on which side of the border it lies, which no processor could predict. */
static inline granule_t length(const mass_pool_t *pool, granule_t g) {
    const cell_t *cell = cell_of(pool, g);
    const cell_t *next = cell + 1;
    unsigned index = g % CELL_GRANULES;
    uint64_t above = cell->start >> index >> 1;
    if (unlikely(next->used == ALL_ONES) && above == 0 && is_covered(next)) {
        return (granule_t)next->start;
    }
    if (likely(next->used != ALL_ONES)) {
        above |= next->start << (63 - index);
    }
    return likely(above != 0) ? lowest(above) + 1
                              : CELL_GRANULES - index + lowest(next->start);
}

/* The start of the free block that ends right before g, or 0 if what ends there is live. */
static inline granule_t free_before(const mass_pool_t *pool, granule_t g) {
    granule_t last = g - 1;
    unsigned index = last % CELL_GRANULES;
    const cell_t *cell = cell_of(pool, last);
    if (unlikely(is_covered(cell))) {
        granule_t start = g - (granule_t)cell->start;
        return is_live(pool, start) ? 0 : start;
    }
    if (((cell->start ^ cell->used) & bit(last)) == 0) {
        return 0;
    }
    const cell_t *previous = cell - 1;
    uint64_t below = cell->start << (63 - index);
    if (unlikely(previous->used == ALL_ONES) && below == 0 && is_covered(previous)) {
        return g - (granule_t)previous->start;
    }
    if (likely(previous->used != ALL_ONES)) {
        below |= previous->start >> index >> 1;
    }
    return likely(below != 0) ? last - (63 - highest(below))
                              : last - index - CELL_GRANULES + highest(previous->start);
}

/* Fills the first and the last of the cells that the block covers, if it covers any. */
static inline void cover(mass_pool_t *pool, granule_t g, granule_t count, cell_t content) {
    size_t first = g / CELL_GRANULES + 1;
    size_t past = ((size_t)g + count) / CELL_GRANULES;
    if (first < past) {
        pool->cells[first] = content;
        pool->cells[past - 1] = content;
    }
}

static inline void write_cover(mass_pool_t *pool, granule_t g, granule_t count) {
    cover(pool, g, count, (cell_t){count, ALL_ONES});
}

static inline void erase_cover(mass_pool_t *pool, granule_t g, granule_t count) {
    cover(pool, g, count, (cell_t){0, 0});
}

static inline void write_live(mass_pool_t *pool, granule_t g, granule_t count) {
    cell_of(pool, g)->start |= bit(g);
    cell_of(pool, g)->used |= bit(g);
    write_cover(pool, g, count);
}

static inline void erase_live(mass_pool_t *pool, granule_t g, granule_t count) {
    cell_of(pool, g)->start &= ~bit(g);
    cell_of(pool, g)->used &= ~bit(g);
    erase_cover(pool, g, count);
}

static inline void write_free(mass_pool_t *pool, granule_t g, granule_t count) {
    granule_t end = g + count - 1;
    cell_of(pool, g)->start |= bit(g);
    cell_of(pool, end)->used |= count > 1 ? bit(end) : 0;
    write_cover(pool, g, count);
}

static inline void erase_free(mass_pool_t *pool, granule_t g, granule_t count) {
    granule_t end = g + count - 1;
    cell_of(pool, g)->start &= ~bit(g);
    cell_of(pool, end)->used &= ~bit(end);
    erase_cover(pool, g, count);
}

/* Makes two live blocks of one. */
static inline void split_live(mass_pool_t *pool, granule_t g, granule_t whole, granule_t count) {
    erase_cover(pool, g, whole);
    write_cover(pool, g, count);
    write_live(pool, g + count, whole - count);
}

#endif

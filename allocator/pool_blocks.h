/* Internal to memory_allocator.c: blocks of granules, taken, given back, joined and moved. All
 * of it runs with the pool's lock held.
 */
#ifndef MASS_POOL_BLOCKS_H
#define MASS_POOL_BLOCKS_H

#include "pool_lists.h"
#include "pool_seals.h"
#include "pool_state.h"

#include <string.h>

/* The hot path is a few such functions, each with a caller or two. */
#define INTERNAL static inline __attribute__((always_inline))

/* Misuse and damage are told to the errors of memory_allocator.c. */
static void report(const mass_pool_t *pool, int code, const void *block);

/* The granules that `size` bytes need, or 0 if no pool of this size could give them. */
INTERNAL granule_t granules_for(const mass_pool_t *pool, size_t size) {
    if (size > (size_t)pool->granule_count * GRANULE) {
        return 0;
    }
    size_t count = (size + (size == 0) + (HARDENED ? SEAL_BYTES : 0) + GRANULE - 1) / GRANULE;
    return count > pool->granule_count ? 0 : (granule_t)count;
}

/* Why the pointer is not a block: looks for the block around it. */
static __attribute__((noinline)) int explain(const mass_pool_t *pool, granule_t g) {
    while (!is_start(pool, g)) {
        const cell_t *cell = cell_of(pool, g);
        uint64_t below = is_covered(cell) ? 0 : cell->start & (bit(g) - 1);
        g -= g % CELL_GRANULES;
        g = below != 0 ? g + highest(below) : g - 1;
    }
    return is_live(pool, g) ? MASS_POOL_E_INTERIOR : MASS_POOL_E_DOUBLE_FREE;
}

/* MASS_POOL_OK and the granule, iff the pointer is the start of a live block. */
INTERNAL int find_live(const mass_pool_t *pool, const void *block, granule_t *g) {
    uintptr_t offset = (uintptr_t)block - pool->origin;
    if (unlikely(offset / GRANULE - 1 >= pool->granule_count)) {
        return MASS_POOL_E_FOREIGN;
    }
    *g = (granule_t)(offset / GRANULE);
    bool found = offset % GRANULE == 0 && is_start(pool, *g) && is_live(pool, *g);
    return likely(found) ? MASS_POOL_OK : explain(pool, *g);
}

/* Somebody wrote to freed memory. The cells know every free block: make all lists anew. Linear, but
 * only a mistake of the caller leads here. */
static __attribute__((noinline)) void remake_lists(mass_pool_t *pool, granule_t damaged) {
    report(pool, MASS_POOL_E_DAMAGED, address(pool, damaged));
    pool->damage_count++;
    clear_lists(pool);
    for (granule_t g = 1; g <= pool->granule_count; g += length(pool, g)) {
        if (!is_live(pool, g)) {
            link_block(pool, g, length(pool, g));
        }
    }
}

/* To be called before any cell is changed: lists are remade from what the cells say. */
INTERNAL void expect_sound_links(mass_pool_t *pool, granule_t g, granule_t count) {
    if (unlikely(!are_links_sound(pool, g, count))) {
        remake_lists(pool, g);
    }
}

INTERNAL void expect_poison(const mass_pool_t *pool, granule_t g, granule_t count) {
    if (HARDENED && !is_poison(pool, g, count, 0)) {
        report(pool, MASS_POOL_E_DAMAGED, address(pool, g));
    }
}

/* Takes a free block, whose links are sound, out of its list and the cells. */
INTERNAL void take(mass_pool_t *pool, granule_t g, granule_t count) {
    unlink_block(pool, g, count);
    poison(pool, g, 1);
    erase_free(pool, g, count);
}

INTERNAL void note_peak(mass_pool_t *pool) {
    pool->used_peak = pool->used > pool->used_peak ? pool->used : pool->used_peak;
}

/* A live block of `count` granules, or 0. */
INTERNAL granule_t allocate_granules(mass_pool_t *pool, granule_t count) {
    granule_t g = find_free(pool, count);
    if (unlikely(g == 0)) {
        return 0;
    }
    granule_t whole = length(pool, g);
    granule_t rest = whole - count;
    granule_t end = g + whole - 1;
    expect_sound_links(pool, g, whole);
    unlink_block(pool, g, whole);
    poison(pool, g, 1);
    if (whole <= CELL_GRANULES) {
        /* What differs between before and after, in as few writes as can be: the end mark goes
         * unless two granules are left for it, and the rest starts where the block ends. */
        cell_of(pool, end)->used &= ~((uint64_t)(rest < 2) << (end % CELL_GRANULES));
        cell_of(pool, g)->used |= bit(g);
        cell_of(pool, g + count)->start |= bit(g + count);
    } else {
        erase_free(pool, g, whole);
        write_live(pool, g, count);
        if (rest != 0) {
            write_free(pool, g + count, rest);
        }
    }
    if (rest != 0) {
        link_block(pool, g + count, rest);
    }
    expect_poison(pool, g, count);
    pool->used += count;
    return g;
}

/* Makes a live block free, joined with the free blocks beside it. */
INTERNAL void free_granules(mass_pool_t *pool, granule_t g, granule_t count) {
    granule_t behind = g + count;
    granule_t more = is_live(pool, behind) ? 0 : length(pool, behind);
    granule_t front = free_before(pool, g);
    if (more != 0) {
        expect_sound_links(pool, behind, more);
    }
    if (front != 0) {
        expect_sound_links(pool, front, g - front);
    }
    pool->used -= count;
    poison(pool, g, count);
    erase_live(pool, g, count);
    if (more != 0) {
        take(pool, behind, more);
        count += more;
    }
    if (front != 0) {
        take(pool, front, g - front);
        count += g - front;
        g = front;
    }
    write_free(pool, g, count);
    link_block(pool, g, count);
}

/* Cuts a live block down to `count` granules, of which there are fewer than it has. */
static void trim(mass_pool_t *pool, granule_t g, granule_t whole, granule_t count) {
    split_live(pool, g, whole, count);
    free_granules(pool, g + count, whole - count);
}

/* Lets the live block grow into the free block behind it; false if that is too small. */
static bool grow_in_place(mass_pool_t *pool, granule_t g, granule_t old, granule_t count) {
    granule_t behind = g + old;
    granule_t more = is_live(pool, behind) ? 0 : length(pool, behind);
    if (more < count - old) {
        return false;
    }
    expect_sound_links(pool, behind, more);
    take(pool, behind, more);
    expect_poison(pool, behind, more);
    erase_live(pool, g, old);
    write_live(pool, g, old + more);
    pool->used += more;
    if (old + more > count) {
        trim(pool, g, old + more, count);
    }
    return true;
}

/* Moves the live block down into the free block in front of it; together with the one behind there
 * must be room for `count` granules. Returns its new start, or 0. */
static granule_t slide(mass_pool_t *pool, granule_t g, granule_t old, granule_t count,
                       size_t keep_bytes) {
    granule_t front = free_before(pool, g);
    granule_t behind = g + old;
    granule_t more = is_live(pool, behind) ? 0 : length(pool, behind);
    granule_t whole = behind + more - front;
    if (front == 0 || whole < count) {
        return 0;
    }
    if (more != 0) {
        expect_sound_links(pool, behind, more);
    }
    expect_sound_links(pool, front, g - front);
    if (more != 0) {
        take(pool, behind, more);
        expect_poison(pool, behind, more);
    }
    take(pool, front, g - front);
    expect_poison(pool, front, g - front);
    erase_live(pool, g, old);
    memmove(address(pool, front), address(pool, g), keep_bytes);
    write_live(pool, front, whole);
    pool->used += whole - old;
    if (whole > count) {
        trim(pool, front, whole, count);
    }
    return front;
}

#endif

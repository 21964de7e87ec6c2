/* Internal to memory_allocator.c: whether the whole state is sound. Trusts nothing that it has not
 * looked at before, and changes nothing.
 */
#ifndef MASS_POOL_CHECK_H
#define MASS_POOL_CHECK_H

#include "pool_seals.h"

/* What the cell must hold in the granules behind the first of the block [g, g + count). */
static inline bool is_cell_sound(const mass_pool_t *pool, granule_t g, granule_t count,
                                 size_t index) {
    const cell_t *cell = &pool->cells[index];
    size_t first = g / CELL_GRANULES + 1;
    size_t past = ((size_t)g + count) / CELL_GRANULES;
    if (index >= first && index < past) {
        bool marked = index == first || index == past - 1;
        return marked ? is_covered(cell) && cell->start == count
                      : cell->start == 0 && cell->used == 0;
    }
    granule_t last = g + count - 1;
    uint64_t mask = ALL_ONES;
    if (index == g / CELL_GRANULES) {
        mask &= ~(uint64_t)1 << (g % CELL_GRANULES);
    }
    if (index == past) {
        mask &= bit(g + count) - 1;
    }
    bool marks_end = index == last / CELL_GRANULES && count > 1 && !is_live(pool, g);
    return !is_covered(cell) && (cell->start & mask) == 0 &&
           (cell->used & mask) == (marks_end ? bit(last) : 0);
}

static inline bool is_block_sound(const mass_pool_t *pool, granule_t g) {
    if (!is_start(pool, g)) {
        return false;
    }
    granule_t count = length(pool, g);
    if (count == 0 || count > pool->granule_count + 1 - g) {
        return false;
    }
    size_t last = (g + count - 1) / CELL_GRANULES;
    for (size_t index = g / CELL_GRANULES; index <= last; index++) {
        if (!is_cell_sound(pool, g, count, index)) {
            return false;
        }
    }
    return true;
}

/* Blocks tile the heap, free ones never touch, and the sums hold. */
static inline int check_blocks(const mass_pool_t *pool, size_t *free_count) {
    size_t used = 0;
    size_t live_count = 0;
    bool after_free = false;
    granule_t count;
    for (granule_t g = 1; g <= pool->granule_count; g += count) {
        if (!is_block_sound(pool, g)) {
            return MASS_POOL_E_UNSOUND;
        }
        count = length(pool, g);
        if (is_live(pool, g)) {
            used += count;
            live_count++;
            after_free = false;
            if (HARDENED && sealed_size(pool, g, count) == SIZE_MAX) {
                return MASS_POOL_E_OVERRUN;
            }
            continue;
        }
        if (after_free) {
            return MASS_POOL_E_UNSOUND;
        }
        after_free = true;
        ++*free_count;
        if (HARDENED && !is_poison(pool, g, count, sizeof(links_t))) {
            return MASS_POOL_E_DAMAGED;
        }
    }
    bool counted = used == pool->used && live_count == pool->live_count;
    return counted && used <= pool->used_peak ? MASS_POOL_OK : MASS_POOL_E_UNSOUND;
}

/* The list holds free blocks of its own size, linked both ways; counts them off. */
static inline int check_list(const mass_pool_t *pool, unsigned group, unsigned list,
                             size_t *free_count) {
    granule_t previous = 0;
    granule_t g = *head_of(pool, group, list) ^ pool->key;
    if ((g != 0) != ((pool->list_map[group] & bit(list)) != 0)) {
        return MASS_POOL_E_UNSOUND;
    }
    while (g != 0) {
        if (g > pool->granule_count || !is_start(pool, g) || is_live(pool, g) || *free_count == 0) {
            return MASS_POOL_E_DAMAGED;
        }
        granule_t count = length(pool, g);
        bool own_list = group_of(count) == group && list_of(count, group) == list;
        if (!own_list || (links_at(pool, g)->previous ^ pool->key) != previous) {
            return MASS_POOL_E_DAMAGED;
        }
        --*free_count;
        previous = g;
        g = links_at(pool, g)->next ^ pool->key;
    }
    return MASS_POOL_OK;
}

static inline int check_lists(const mass_pool_t *pool, size_t free_count) {
    for (unsigned group = 0; group < pool->group_count; group++) {
        if ((pool->list_map[group] != 0) != ((pool->group_map & bit(group)) != 0)) {
            return MASS_POOL_E_UNSOUND;
        }
        for (unsigned list = 0; list < LISTS_PER_GROUP; list++) {
            int code = check_list(pool, group, list, &free_count);
            if (code != MASS_POOL_OK) {
                return code;
            }
        }
    }
    return free_count == 0 ? MASS_POOL_OK : MASS_POOL_E_DAMAGED;
}

#endif

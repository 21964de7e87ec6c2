/* Internal to memory_allocator.c: the lists of free blocks, by size. Their links are the only state
 * inside the heap, so they are never followed before they were checked.
 */
#ifndef MASS_POOL_LISTS_H
#define MASS_POOL_LISTS_H

#include "pool_state.h"

#include <string.h>

static inline void *address(const mass_pool_t *pool, granule_t g) {
    return (void *)(pool->origin + (uintptr_t)g * GRANULE);
}

static inline links_t *links_at(const mass_pool_t *pool, granule_t g) { return address(pool, g); }

/* Group 0 holds sizes below 64, group n those from 2^(n + 5) on. */
static inline unsigned group_of(granule_t count) { return highest(count | 32U) - 5U; }

/* Within a group the six bits below the leading one; group 0 has no leading one to leave out. */
static inline unsigned list_of(granule_t count, unsigned group) {
    return (count >> (group - (group != 0))) % LISTS_PER_GROUP;
}

static inline link_t *head_of(const mass_pool_t *pool, unsigned group, unsigned list) {
    return &pool->heads[group * LISTS_PER_GROUP + list];
}

static inline void clear_lists(mass_pool_t *pool) {
    for (unsigned i = 0; i < pool->group_count * LISTS_PER_GROUP; i++) {
        pool->heads[i] = pool->key;
    }
    memset(pool->list_map, 0, sizeof pool->list_map);
    pool->group_map = 0;
}

static inline void link_block(mass_pool_t *pool, granule_t g, granule_t count) {
    unsigned group = group_of(count);
    unsigned list = list_of(count, group);
    link_t *head = head_of(pool, group, list);
    granule_t first = *head ^ pool->key;
    links_t *behind = first != 0 ? links_at(pool, first) : &pool->nobody;
    *links_at(pool, g) = (links_t){*head, pool->key};
    behind->previous = *head = g ^ pool->key;
    pool->list_map[group] |= bit(list);
    pool->group_map |= bit(group);
}

/* Both neighbours are free blocks or none, and point back. */
static inline bool are_links_sound(const mass_pool_t *pool, granule_t g, granule_t count) {
    unsigned group = group_of(count);
    granule_t next = links_at(pool, g)->next ^ pool->key;
    granule_t previous = links_at(pool, g)->previous ^ pool->key;
    if (next > pool->granule_count || previous > pool->granule_count) {
        return false;
    }
    const links_t *behind = next != 0 ? links_at(pool, next) : &pool->nobody;
    const link_t *front = previous != 0 ? &links_at(pool, previous)->next
                                        : head_of(pool, group, list_of(count, group));
    link_t self = g ^ pool->key;
    return ((next == 0) | (behind->previous == self)) & (*front == self);
}

/* The links of this block are sound. */
static inline void unlink_block(mass_pool_t *pool, granule_t g, granule_t count) {
    unsigned group = group_of(count);
    unsigned list = list_of(count, group);
    link_t *head = head_of(pool, group, list);
    links_t links = *links_at(pool, g);
    granule_t next = links.next ^ pool->key;
    granule_t previous = links.previous ^ pool->key;
    links_t *behind = next != 0 ? links_at(pool, next) : &pool->nobody;
    link_t *front = previous != 0 ? &links_at(pool, previous)->next : head;
    *front = links.next;
    behind->previous = links.previous;
    uint64_t lists = (pool->list_map[group] & ~bit(list)) | (uint64_t)(*head != pool->key) << list;
    pool->list_map[group] = lists;
    pool->group_map = (pool->group_map & ~bit(group)) | (uint64_t)(lists != 0) << group;
}

/* A free block of at least `count` granules, or 0. The first of count's own list may be large
 * enough; every block of a higher list is. */
static inline granule_t find_free(const mass_pool_t *pool, granule_t count) {
    unsigned group = group_of(count);
    unsigned list = list_of(count, group);
    if (unlikely(group >= pool->group_count)) {
        return 0;
    }
    uint64_t lists = pool->list_map[group] & (ALL_ONES << list);
    if (group > 1 && (lists & bit(list)) != 0) { /* groups 0 and 1 have one size to a list */
        granule_t own = *head_of(pool, group, list) ^ pool->key;
        if (length(pool, own) >= count) {
            return own;
        }
        lists &= lists - 1;
    }
    if (lists == 0) {
        uint64_t groups = pool->group_map & (ALL_ONES << group << 1);
        if (groups == 0) {
            return 0;
        }
        group = lowest(groups);
        lists = pool->list_map[group];
    }
    return *head_of(pool, group, lowest(lists)) ^ pool->key;
}

/* The free block of the highest list's head: what can be had at once. 0 if nothing is free. */
static inline granule_t largest_free(const mass_pool_t *pool) {
    if (pool->group_map == 0) {
        return 0;
    }
    unsigned group = highest(pool->group_map);
    return *head_of(pool, group, highest(pool->list_map[group])) ^ pool->key;
}

#endif

/* The pool allocator. The idea, in one sitting:
 *
 * Memory is cut into granules of 16 bytes, numbered from 1. Blocks, live or free, tile it without
 * gap, and two free blocks never touch. Nothing stands in front of a block; what is known of it
 * stands beside the heap, in two bits per granule kept as pairs of words (struct cell):
 *
 *     start used
 *       1    1    first granule of a live block
 *       1    0    first granule of a free block
 *       0    1    last granule of a free block of two granules or more
 *       0    0    any other granule
 *
 * A cell whose 64 granules all lie behind the first granule of one block is covered by it. The
 * first and the last cell that a block covers hold its length in granules in the start word and
 * all ones in the used word (those between are zero). No bits look like that: used all ones
 * leaves the start word with its bits 1 to 63 set, and a length is below 2^33. So the length of a
 * block is the distance to the next start bit in its own cell, else the length in the next cell,
 * else the distance to the first start bit there: two cells at most, no loop. The same holds
 * backwards from the end of a free block. Granules 0 and N + 1 are fences, live blocks for ever.
 *
 * Free blocks hang in doubly linked lists by size: 64 lists for each power of two, exact below 128
 * granules. A bit per list and a bit per group of 64 find the next list that is not empty
 * with two bit scans. The links are granule numbers in the first 8 bytes of the free block, the only
 * state inside the heap. Both directions are compared on removal; when they disagree
 * somebody has written to freed memory, and since the cells know everything, the lists are
 * simply made anew from them.
 *
 * So a pointer is the start of a live block or it is not, exactly, and an overrun reaches
 * other blocks but never the state.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "memory_allocator.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- Definitions ---------------------------------------------------------------------------- */

#define GRANULE ((size_t)MASS_POOL_ALIGNMENT)
#define LISTS_PER_GROUP 64U
#define EXACT_GROUP_BITS 6U       /* sizes below 2^6 granules are group 0, one list for each */
#define COVERED_START_MAX ((uint64_t)1 << 40)
#define SPIN_ROUNDS 100U          /* about as long as one call holds the lock, several times over */

#ifdef MASS_HARDENED
#define HARDENED 1
#else
#define HARDENED 0
#endif
#define SEAL_BYTES 16U            /* hardened: 8 bytes of canary at least, and the requested size */
#define CANARY_BYTE 0xCA
#define POISON_BYTE 0xDD

typedef uint32_t granule_t;       /* a granule's number, or a count of granules */

typedef struct {
    uint64_t start;
    uint64_t used;
} cell_t;

typedef struct {
    granule_t next;               /* 0: the last one. Both are stored combined with the pool's key, */
    granule_t previous;           /* so that memory zeroed after free does not read as "no neighbour" */
} links_t;

struct mass_pool {
    pthread_mutex_t mutex;
    uintptr_t origin;             /* address of granule 0, which is not memory */
    granule_t granule_count;      /* N */
    granule_t link_key;
    cell_t *cells;
    granule_t *heads;             /* [group][list] */
    unsigned group_count;
    uint32_t group_map;           /* groups with a list that is not empty */
    uint64_t list_map[32];
    size_t used;                  /* granules in live blocks, now and at most */
    size_t used_peak;
    size_t live_count;
    uint64_t allocation_count, reallocation_count, free_count;
    uint64_t failure_count, wrong_free_count, damage_count;
    void *mapping;                /* own mapping, or NULL over the caller's memory */
    size_t mapping_bytes;
};

static_assert(MASS_POOL_BYTES_MAX / MASS_POOL_ALIGNMENT <= (uint64_t)1 << 32, "32-bit granules");
static_assert(sizeof(links_t) <= MASS_POOL_ALIGNMENT, "links fit the smallest block");

/* Like errno: what failed last on this thread, and where. */
static _Thread_local const mass_pool_t *last_error_pool;
static _Thread_local int last_error_code;

static int fail(const mass_pool_t *pool, int code) {
    last_error_pool = pool;
    last_error_code = code;
    return code;
}

/* Misuse and damage: the caller goes on with a refusal, the hardened pool does not. */
static int report(const mass_pool_t *pool, int code, const void *block) {
    if (HARDENED) {
        fprintf(stderr, "mass_pool %p: block %p: %s\n", (const void *)pool, block,
                mass_pool_error_text(code));
        abort();
    }
    return fail(pool, code);
}

/* The holder needs some 20 ns, a sleep and a wake-up thousands: look a few times before sleeping. */
static void lock_contended(mass_pool_t *pool) {
    for (unsigned round = 0; round < SPIN_ROUNDS; round++) {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
        if (pthread_mutex_trylock(&pool->mutex) == 0) {
            return;
        }
    }
    pthread_mutex_lock(&pool->mutex);
}

static inline void lock(mass_pool_t *pool) {
    if (pthread_mutex_trylock(&pool->mutex) != 0) {
        lock_contended(pool);
    }
}

static inline void unlock(mass_pool_t *pool) { pthread_mutex_unlock(&pool->mutex); }

/* ---- Cells: which granules are blocks --------------------------------------------------------- */

static inline uint64_t bit(granule_t g) { return (uint64_t)1 << (g & 63); }

static inline cell_t *cell_of(const mass_pool_t *pool, granule_t g) { return &pool->cells[g >> 6]; }

static inline unsigned lowest(uint64_t word) { return (unsigned)__builtin_ctzll(word); }

static inline unsigned highest(uint64_t word) { return 63U - (unsigned)__builtin_clzll(word); }

static inline bool is_covered(const cell_t *cell) {
    return cell->used == ~(uint64_t)0 && cell->start < COVERED_START_MAX;
}

static inline bool is_start(const mass_pool_t *pool, granule_t g) {
    const cell_t *cell = cell_of(pool, g);
    return (cell->start & bit(g)) != 0 && !is_covered(cell);
}

/* g is known to start a block. */
static inline bool is_live(const mass_pool_t *pool, granule_t g) {
    return (cell_of(pool, g)->used & bit(g)) != 0;
}

static inline granule_t length(const mass_pool_t *pool, granule_t g) {
    const cell_t *cell = cell_of(pool, g);
    uint64_t above = cell->start >> (g & 63) >> 1;
    if (above != 0) {
        return lowest(above) + 1;
    }
    cell++;
    return is_covered(cell) ? (granule_t)cell->start : 64 - (g & 63) + lowest(cell->start);
}

/* The start of the free block that ends right before g, or 0 if what ends there is live. */
static inline granule_t free_before(const mass_pool_t *pool, granule_t g) {
    granule_t last = g - 1;
    const cell_t *cell = cell_of(pool, last);
    if ((cell->used & bit(last)) == 0) {
        return (cell->start & bit(last)) != 0 ? last : 0;
    }
    if (is_covered(cell)) {
        granule_t start = g - (granule_t)cell->start;
        return is_live(pool, start) ? 0 : start;
    }
    if ((cell->start & bit(last)) != 0) {
        return 0;
    }
    uint64_t below = cell->start & (bit(last) - 1);
    if (below != 0) {
        return (last & ~(granule_t)63) + highest(below);
    }
    cell--;
    return is_covered(cell) ? g - (granule_t)cell->start
                            : (last & ~(granule_t)63) - 64 + highest(cell->start);
}

/* What lies in the cells that the block covers wholly; only its first and last one are written. */
static inline void cover(mass_pool_t *pool, granule_t g, granule_t count, cell_t content) {
    size_t first = (g >> 6) + 1;
    size_t past = ((size_t)g + count) >> 6;
    if (first < past) {
        pool->cells[first] = content;
        pool->cells[past - 1] = content;
    }
}

static inline void write_live(mass_pool_t *pool, granule_t g, granule_t count) {
    cell_t *cell = cell_of(pool, g);
    cell->start |= bit(g);
    cell->used |= bit(g);
    cover(pool, g, count, (cell_t){count, ~(uint64_t)0});
}

static inline void erase_live(mass_pool_t *pool, granule_t g, granule_t count) {
    cell_t *cell = cell_of(pool, g);
    cell->start &= ~bit(g);
    cell->used &= ~bit(g);
    cover(pool, g, count, (cell_t){0, 0});
}

static inline void write_free(mass_pool_t *pool, granule_t g, granule_t count) {
    cell_of(pool, g)->start |= bit(g);
    if (count > 1) {
        cell_of(pool, g + count - 1)->used |= bit(g + count - 1);
    }
    cover(pool, g, count, (cell_t){count, ~(uint64_t)0});
}

static inline void erase_free(mass_pool_t *pool, granule_t g, granule_t count) {
    cell_of(pool, g)->start &= ~bit(g);
    cell_of(pool, g + count - 1)->used &= ~bit(g + count - 1);
    cover(pool, g, count, (cell_t){0, 0});
}

/* ---- Granules as memory ------------------------------------------------------------------------- */

static inline void *address(const mass_pool_t *pool, granule_t g) {
    return (void *)(pool->origin + (uintptr_t)g * GRANULE);
}

/* The granules that `size` bytes need, or 0 if no pool of this size could give them. */
static inline granule_t granules_for(const mass_pool_t *pool, size_t size) {
    if (size > (size_t)pool->granule_count * GRANULE) {
        return 0;
    }
    size_t count = (size + (HARDENED ? SEAL_BYTES : 0) + GRANULE - 1) / GRANULE;
    count += count == 0;
    return count > pool->granule_count ? 0 : (granule_t)count;
}

/* MASS_POOL_OK and the granule, iff the pointer is the start of a live block. */
static inline int find_live(const mass_pool_t *pool, const void *block, granule_t *g) {
    uintptr_t offset = (uintptr_t)block - pool->origin;
    if (offset < GRANULE || offset >= ((uintptr_t)pool->granule_count + 1) * GRANULE) {
        return MASS_POOL_E_FOREIGN;
    }
    *g = (granule_t)(offset / GRANULE);
    if (offset % GRANULE == 0 && is_start(pool, *g) && is_live(pool, *g)) {
        return MASS_POOL_OK;
    }
    granule_t start = *g; /* go back to the block around it, to tell what kind of mistake this is */
    while (!is_start(pool, start)) {
        const cell_t *cell = cell_of(pool, start);
        uint64_t below = is_covered(cell) ? 0 : cell->start & (bit(start) - 1);
        start &= ~(granule_t)63;
        start = below != 0 ? start + highest(below) : start - 1;
    }
    return is_live(pool, start) ? MASS_POOL_E_INTERIOR : MASS_POOL_E_DOUBLE_FREE;
}

static inline links_t load_links(const mass_pool_t *pool, granule_t g) {
    links_t links;
    memcpy(&links, address(pool, g), sizeof links);
    return (links_t){links.next ^ pool->link_key, links.previous ^ pool->link_key};
}

static inline void store_links(mass_pool_t *pool, granule_t g, granule_t next, granule_t previous) {
    links_t links = {next ^ pool->link_key, previous ^ pool->link_key};
    memcpy(address(pool, g), &links, sizeof links);
}

/* ---- Hardened: seals behind live blocks, poison in free ones ------------------------------------ */

/* A sealed block: the user's bytes, canaries, and in the last 8 bytes the user's size, disguised. */
static inline uint64_t seal_of(const mass_pool_t *pool, granule_t g, size_t size) {
    return (uint64_t)size ^ 0xA5C3F00D5EA1B10CU ^ (uint64_t)pool->origin ^ ((uint64_t)g << 40);
}

static inline void seal(mass_pool_t *pool, granule_t g, granule_t count, size_t size) {
    if (HARDENED) {
        unsigned char *block = address(pool, g);
        size_t end = (size_t)count * GRANULE - sizeof(uint64_t);
        uint64_t word = seal_of(pool, g, size);
        memset(block + size, CANARY_BYTE, end - size);
        memcpy(block + end, &word, sizeof word);
    }
}

/* The size that was asked for, or SIZE_MAX if the seal is broken. Not hardened: all of the block. */
static inline size_t sealed_size(const mass_pool_t *pool, granule_t g, granule_t count) {
    size_t bytes = (size_t)count * GRANULE;
    if (!HARDENED) {
        return bytes;
    }
    const unsigned char *block = address(pool, g);
    uint64_t word;
    memcpy(&word, block + bytes - sizeof word, sizeof word);
    size_t size = (size_t)(word ^ seal_of(pool, g, 0));
    if (size > bytes - SEAL_BYTES) {
        return SIZE_MAX;
    }
    for (size_t i = size; i < bytes - sizeof word; i++) {
        if (block[i] != CANARY_BYTE) {
            return SIZE_MAX;
        }
    }
    return size;
}

static inline void poison(mass_pool_t *pool, granule_t g, granule_t count) {
    if (HARDENED) {
        memset(address(pool, g), POISON_BYTE, (size_t)count * GRANULE);
    }
}

/* Links are not poison: `skip` is their size as long as the block hangs in a list. */
static inline bool is_poison(const mass_pool_t *pool, granule_t g, granule_t count, size_t skip) {
    const unsigned char *memory = address(pool, g);
    for (size_t i = skip; i < (size_t)count * GRANULE; i++) {
        if (memory[i] != POISON_BYTE) {
            return false;
        }
    }
    return true;
}

static inline void expect_poison(const mass_pool_t *pool, granule_t g, granule_t count) {
    if (HARDENED && !is_poison(pool, g, count, 0)) {
        report(pool, MASS_POOL_E_DAMAGED, address(pool, g));
    }
}

/* ---- Lists of free blocks --------------------------------------------------------------------- */

static inline unsigned group_of(granule_t count) {
    unsigned top = highest(count);
    return top < EXACT_GROUP_BITS ? 0 : top - EXACT_GROUP_BITS + 1;
}

/* Within a group the six bits below the leading one; group 0 has no leading one to leave out. */
static inline unsigned list_of(granule_t count, unsigned group) {
    return (count >> (group - (group != 0))) & (LISTS_PER_GROUP - 1);
}

static inline granule_t *head_of(const mass_pool_t *pool, unsigned group, unsigned list) {
    return &pool->heads[group * LISTS_PER_GROUP + list];
}

static inline void link_block(mass_pool_t *pool, granule_t g, granule_t count) {
    unsigned group = group_of(count);
    unsigned list = list_of(count, group);
    granule_t *head = head_of(pool, group, list);
    store_links(pool, g, *head, 0);
    if (*head != 0) {
        store_links(pool, *head, load_links(pool, *head).next, g);
    }
    *head = g;
    pool->list_map[group] |= bit(list);
    pool->group_map |= 1U << group;
}

/* Somebody wrote to freed memory. The cells know every free block: make all lists anew. Linear, but
 * only a mistake of the caller leads here. */
static __attribute__((noinline)) void remake_lists(mass_pool_t *pool, granule_t damaged) {
    report(pool, MASS_POOL_E_DAMAGED, address(pool, damaged));
    pool->damage_count++;
    memset(pool->heads, 0, pool->group_count * LISTS_PER_GROUP * sizeof *pool->heads);
    memset(pool->list_map, 0, sizeof pool->list_map);
    pool->group_map = 0;
    for (granule_t g = 1; g <= pool->granule_count; g += length(pool, g)) {
        if (!is_live(pool, g)) {
            link_block(pool, g, length(pool, g));
        }
    }
}

/* The neighbours must be free blocks that point back. */
static inline bool are_links_sound(const mass_pool_t *pool, granule_t g, links_t links,
                                   granule_t head) {
    granule_t count = pool->granule_count;
    return links.next <= count && links.previous <= count &&
           (links.next == 0 || load_links(pool, links.next).previous == g) &&
           (links.previous == 0 ? head == g : load_links(pool, links.previous).next == g);
}

/* Before anything is changed, because lists are remade from cells that must tell the truth. */
static inline void expect_sound_links(mass_pool_t *pool, granule_t g, granule_t count) {
    unsigned group = group_of(count);
    granule_t head = *head_of(pool, group, list_of(count, group));
    if (!are_links_sound(pool, g, load_links(pool, g), head)) {
        remake_lists(pool, g);
    }
}

static inline void unlink_block(mass_pool_t *pool, granule_t g, granule_t count) {
    unsigned group = group_of(count);
    unsigned list = list_of(count, group);
    granule_t *head = head_of(pool, group, list);
    links_t links = load_links(pool, g);
    if (links.next != 0) {
        store_links(pool, links.next, load_links(pool, links.next).next, links.previous);
    }
    if (links.previous != 0) {
        store_links(pool, links.previous, links.next, load_links(pool, links.previous).previous);
    } else {
        *head = links.next;
        if (links.next == 0) {
            pool->list_map[group] &= ~bit(list);
            pool->group_map &= ~((uint32_t)(pool->list_map[group] == 0) << group);
        }
    }
    poison(pool, g, 1);
}

/* A free block of at least `count` granules, or 0. The first of count's own list may be large enough;
 * every block of a higher list is. */
static inline granule_t find_free(const mass_pool_t *pool, granule_t count) {
    unsigned group = group_of(count);
    unsigned list = list_of(count, group);
    if (group >= pool->group_count) {
        return 0;
    }
    granule_t own = *head_of(pool, group, list);
    if (own != 0 && length(pool, own) >= count) {
        return own;
    }
    uint64_t lists = list == 63 ? 0 : pool->list_map[group] & (~(uint64_t)0 << (list + 1));
    if (lists == 0) {
        uint32_t groups = pool->group_map & ~(uint32_t)(((uint64_t)2 << group) - 1);
        if (groups == 0) {
            return 0;
        }
        group = lowest(groups);
        lists = pool->list_map[group];
    }
    return *head_of(pool, group, lowest(lists));
}

/* ---- Blocks ------------------------------------------------------------------------------------- */

/* Makes a live block free, joined with the free blocks beside it. */
static inline void free_granules(mass_pool_t *pool, granule_t g, granule_t count) {
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
    erase_live(pool, g, count);
    poison(pool, g, count);
    if (more != 0) {
        unlink_block(pool, behind, more);
        erase_free(pool, behind, more);
        count += more;
    }
    if (front != 0) {
        unlink_block(pool, front, g - front);
        erase_free(pool, front, g - front);
        count += g - front;
        g = front;
    }
    write_free(pool, g, count);
    link_block(pool, g, count);
}

/* Takes the whole free block out of list and bits; the caller writes what is there from now on. */
static inline granule_t take(mass_pool_t *pool, granule_t g) {
    granule_t count = length(pool, g);
    expect_sound_links(pool, g, count);
    unlink_block(pool, g, count);
    erase_free(pool, g, count);
    return count;
}

static inline void count_used(mass_pool_t *pool, size_t count) {
    pool->used += count;
    if (pool->used > pool->used_peak) {
        pool->used_peak = pool->used;
    }
}

/* A live block of `count` granules, or 0. */
static inline granule_t allocate_granules(mass_pool_t *pool, granule_t count) {
    granule_t g = find_free(pool, count);
    if (g == 0) {
        return 0;
    }
    granule_t whole = take(pool, g);
    write_live(pool, g, count);
    if (whole > count) { /* the rest has a live block on both sides */
        write_free(pool, g + count, whole - count);
        link_block(pool, g + count, whole - count);
    }
    expect_poison(pool, g, count);
    count_used(pool, count);
    return g;
}

/* Shrinks the live block in place, or grows it into the free block behind; false if it cannot. */
static bool resize_in_place(mass_pool_t *pool, granule_t g, granule_t old, granule_t count) {
    if (count > old) {
        granule_t behind = g + old;
        if (is_live(pool, behind) || length(pool, behind) < count - old) {
            return false;
        }
        granule_t more = take(pool, behind);
        expect_poison(pool, behind, count - old);
        erase_live(pool, g, old);
        write_live(pool, g, count);
        if (old + more > count) {
            write_free(pool, g + count, old + more - count);
            link_block(pool, g + count, old + more - count);
        }
        count_used(pool, count - old);
    } else if (count < old) {
        erase_live(pool, g, old);
        write_live(pool, g, count);
        write_live(pool, g + count, old - count);
        free_granules(pool, g + count, old - count);
    }
    return true;
}

/* Moves the live block down into the free block in front; with the one behind there must be room
 * for `count` granules. Returns its new start, or 0. */
static granule_t slide(mass_pool_t *pool, granule_t g, granule_t old, granule_t count,
                       size_t keep_bytes) {
    granule_t front = free_before(pool, g);
    granule_t behind = g + old;
    granule_t more = is_live(pool, behind) ? 0 : length(pool, behind);
    if (front == 0 || behind - front + more < count) {
        return 0;
    }
    expect_poison(pool, front, take(pool, front));
    if (more != 0) {
        take(pool, behind);
    }
    erase_live(pool, g, old);
    memmove(address(pool, front), address(pool, g), keep_bytes);
    write_live(pool, front, count);
    count_used(pool, count - old);
    granule_t rest = behind + more - front - count;
    if (rest != 0) {
        write_live(pool, front + count, rest);
        pool->used += rest;
        free_granules(pool, front + count, rest);
    }
    return front;
}

/* ---- The calls ---------------------------------------------------------------------------------- */

static void *refuse(mass_pool_t *pool, int code) {
    pool->failure_count += code == MASS_POOL_E_EXHAUSTED || code == MASS_POOL_E_SIZE;
    unlock(pool);
    fail(pool, code);
    return NULL;
}

static int refuse_pointer(mass_pool_t *pool, int code, const void *block) {
    pool->wrong_free_count++;
    unlock(pool);
    return report(pool, code, block);
}

void *mass_pool_allocate(mass_pool_t *pool, size_t size) {
    granule_t count = granules_for(pool, size);
    lock(pool);
    granule_t g = count == 0 ? 0 : allocate_granules(pool, count);
    if (g == 0) {
        return refuse(pool, count == 0 ? MASS_POOL_E_SIZE : MASS_POOL_E_EXHAUSTED);
    }
    pool->allocation_count++;
    pool->live_count++;
    seal(pool, g, count, size);
    unlock(pool);
    return address(pool, g);
}

void *mass_pool_allocate_aligned(mass_pool_t *pool, size_t alignment, size_t size) {
    if (alignment == 0 || (alignment & (alignment - 1)) != 0) {
        fail(pool, MASS_POOL_E_ALIGNMENT);
        return NULL;
    }
    if (alignment <= GRANULE) {
        return mass_pool_allocate(pool, size);
    }
    granule_t count = granules_for(pool, size);
    lock(pool);
    if (count == 0 || alignment / GRANULE > pool->granule_count - count + 1) {
        return refuse(pool, MASS_POOL_E_SIZE);
    }
    /* With this many granules there is a start that fits, wherever the free block lies. */
    granule_t wide = count + (granule_t)(alignment / GRANULE) - 1;
    granule_t g = find_free(pool, wide);
    if (g == 0) {
        return refuse(pool, MASS_POOL_E_EXHAUSTED);
    }
    granule_t whole = take(pool, g);
    uintptr_t past = (uintptr_t)address(pool, g) & (alignment - 1);
    granule_t skipped = past == 0 ? 0 : (granule_t)((alignment - past) / GRANULE);
    granule_t rest = whole - skipped - count;
    write_live(pool, g + skipped, count);
    if (skipped != 0) {
        write_free(pool, g, skipped);
        link_block(pool, g, skipped);
    }
    if (rest != 0) {
        write_free(pool, g + skipped + count, rest);
        link_block(pool, g + skipped + count, rest);
    }
    g += skipped;
    expect_poison(pool, g, count);
    count_used(pool, count);
    pool->allocation_count++;
    pool->live_count++;
    seal(pool, g, count, size);
    unlock(pool);
    return address(pool, g);
}

int mass_pool_free(mass_pool_t *pool, void *block) {
    if (block == NULL) {
        return MASS_POOL_OK;
    }
    granule_t g;
    lock(pool);
    int code = find_live(pool, block, &g);
    if (code != MASS_POOL_OK) {
        return refuse_pointer(pool, code, block);
    }
    granule_t count = length(pool, g);
    if (HARDENED && sealed_size(pool, g, count) == SIZE_MAX) {
        report(pool, MASS_POOL_E_OVERRUN, block);
    }
    free_granules(pool, g, count);
    pool->free_count++;
    pool->live_count--;
    unlock(pool);
    return MASS_POOL_OK;
}

/* Ends a reallocation that found room elsewhere. The bytes are copied without the lock (both blocks
 * are the caller's), so one large move does not hold up everybody else. */
static void *move(mass_pool_t *pool, void *block, granule_t fresh, size_t keep_bytes) {
    void *moved = address(pool, fresh);
    granule_t g;
    unlock(pool);
    memcpy(moved, block, keep_bytes);
    lock(pool);
    int code = find_live(pool, block, &g);
    if (code != MASS_POOL_OK) { /* freed by another thread meanwhile: that was the wrong free */
        refuse_pointer(pool, code, block);
        return moved;
    }
    free_granules(pool, g, length(pool, g));
    unlock(pool);
    return moved;
}

void *mass_pool_reallocate(mass_pool_t *pool, void *block, size_t size) {
    if (block == NULL) {
        return mass_pool_allocate(pool, size);
    }
    granule_t g;
    lock(pool);
    int code = find_live(pool, block, &g);
    if (code != MASS_POOL_OK) {
        refuse_pointer(pool, code, block);
        return NULL;
    }
    granule_t count = granules_for(pool, size);
    if (count == 0) {
        return refuse(pool, MASS_POOL_E_SIZE);
    }
    granule_t old = length(pool, g);
    size_t old_bytes = sealed_size(pool, g, old);
    if (HARDENED && old_bytes == SIZE_MAX) {
        report(pool, MASS_POOL_E_OVERRUN, block);
    }
    if (resize_in_place(pool, g, old, count)) {
        pool->reallocation_count++;
        seal(pool, g, count, size);
        unlock(pool);
        return block;
    }
    granule_t fresh = allocate_granules(pool, count);
    if (fresh != 0) {
        pool->reallocation_count++;
        seal(pool, fresh, count, size);
        return move(pool, block, fresh, old_bytes);
    }
    g = slide(pool, g, old, count, old_bytes);
    if (g == 0) {
        return refuse(pool, MASS_POOL_E_EXHAUSTED);
    }
    pool->reallocation_count++;
    seal(pool, g, count, size);
    unlock(pool);
    return address(pool, g);
}

size_t mass_pool_size_of(mass_pool_t *pool, const void *block) {
    granule_t g;
    size_t bytes = 0;
    lock(pool);
    if (find_live(pool, block, &g) == MASS_POOL_OK) {
        bytes = sealed_size(pool, g, length(pool, g));
    }
    unlock(pool);
    return bytes == SIZE_MAX ? 0 : bytes;
}

void mass_pool_statistics(mass_pool_t *pool, mass_pool_statistics_t *out) {
    lock(pool);
    size_t largest = 0;
    if (pool->group_map != 0) {
        unsigned group = highest(pool->group_map);
        largest = length(pool, *head_of(pool, group, highest(pool->list_map[group])));
    }
    largest *= GRANULE;
    if (HARDENED) {
        largest -= largest < SEAL_BYTES ? largest : SEAL_BYTES;
    }
    *out = (mass_pool_statistics_t){
        .capacity_bytes = pool->granule_count * GRANULE,
        .used_bytes = pool->used * GRANULE,
        .used_peak_bytes = pool->used_peak * GRANULE,
        .largest_free_bytes = largest,
        .live_count = pool->live_count,
        .allocation_count = pool->allocation_count,
        .reallocation_count = pool->reallocation_count,
        .free_count = pool->free_count,
        .failure_count = pool->failure_count,
        .wrong_free_count = pool->wrong_free_count,
        .damage_count = pool->damage_count,
    };
    unlock(pool);
}

int mass_pool_walk(mass_pool_t *pool, mass_pool_visitor_t visit, void *context) {
    int result = 0;
    lock(pool);
    for (granule_t g = 1; g <= pool->granule_count && result == 0; g += length(pool, g)) {
        size_t bytes = (size_t)length(pool, g) * GRANULE;
        result = visit(context, address(pool, g), bytes, is_live(pool, g));
    }
    unlock(pool);
    return result;
}

int mass_pool_last_error(const mass_pool_t *pool) {
    return last_error_pool == pool ? last_error_code : MASS_POOL_OK;
}

const char *mass_pool_error_text(int code) {
    static const char *const text[] = {
        [MASS_POOL_OK] = "no error",
        [MASS_POOL_E_EXHAUSTED] = "the pool has no free block of that size",
        [MASS_POOL_E_SIZE] = "the size exceeds what the whole pool could give",
        [MASS_POOL_E_ALIGNMENT] = "the alignment is not a power of two",
        [MASS_POOL_E_FOREIGN] = "the pointer does not belong to the pool",
        [MASS_POOL_E_INTERIOR] = "the pointer lies inside a live block, not at its start",
        [MASS_POOL_E_DOUBLE_FREE] = "the block is free already",
        [MASS_POOL_E_DAMAGED] = "freed memory was written to",
        [MASS_POOL_E_OVERRUN] = "memory behind the end of the block was written to",
        [MASS_POOL_E_UNSOUND] = "the state of the pool contradicts itself",
        [MASS_POOL_E_ENVIRONMENT] = "POOL_BYTES is not a valid size",
    };
    bool known = code >= 0 && (size_t)code < sizeof text / sizeof text[0];
    return known ? text[code] : "unknown error";
}

/* ---- Check -------------------------------------------------------------------------------------- */

/* What the cell must hold in the granules behind the first of the block [g, g + count). */
static bool is_cell_sound(const mass_pool_t *pool, granule_t g, granule_t count, size_t index) {
    const cell_t *cell = &pool->cells[index];
    size_t first = (g >> 6) + 1;
    size_t past = ((size_t)g + count) >> 6;
    if (index >= first && index < past) {
        bool marked = index == first || index == past - 1;
        return marked ? is_covered(cell) && cell->start == count
                      : cell->start == 0 && cell->used == 0;
    }
    uint64_t mask = ~(uint64_t)0;
    uint64_t last = 0;
    if (index == g >> 6) {
        mask &= ~(uint64_t)1 << (g & 63);
    }
    if (index == past) {
        mask &= bit(g + count) - 1;
    }
    if (index == (g + count - 1) >> 6 && count > 1 && !is_live(pool, g)) {
        last = bit(g + count - 1);
    }
    return !is_covered(cell) && (cell->start & mask) == 0 && (cell->used & mask) == last;
}

static bool is_block_sound(const mass_pool_t *pool, granule_t g) {
    if (!is_start(pool, g)) {
        return false;
    }
    granule_t count = length(pool, g);
    if (count == 0 || count > pool->granule_count + 1 - g) {
        return false;
    }
    for (size_t index = g >> 6; index <= (g + count - 1) >> 6; index++) {
        if (!is_cell_sound(pool, g, count, index)) {
            return false;
        }
    }
    return true;
}

static int check_blocks(const mass_pool_t *pool, size_t *free_count) {
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
        } else if (after_free) {
            return MASS_POOL_E_UNSOUND;
        } else {
            after_free = true;
            ++*free_count;
            if (HARDENED && !is_poison(pool, g, count, sizeof(links_t))) {
                return MASS_POOL_E_DAMAGED;
            }
        }
    }
    bool counted = used == pool->used && live_count == pool->live_count;
    return counted && used <= pool->used_peak ? MASS_POOL_OK : MASS_POOL_E_UNSOUND;
}

/* Every list holds free blocks of its own size, linked both ways; together there are free_count. */
static int check_lists(const mass_pool_t *pool, size_t free_count) {
    for (unsigned index = 0; index < pool->group_count * LISTS_PER_GROUP; index++) {
        unsigned group = index / LISTS_PER_GROUP;
        unsigned list = index % LISTS_PER_GROUP;
        granule_t previous = 0;
        granule_t g = *head_of(pool, group, list);
        if ((g != 0) != ((pool->list_map[group] & bit(list)) != 0)) {
            return MASS_POOL_E_UNSOUND;
        }
        while (g != 0) {
            if (g > pool->granule_count || !is_start(pool, g) || is_live(pool, g) ||
                free_count == 0 || load_links(pool, g).previous != previous) {
                return MASS_POOL_E_DAMAGED;
            }
            granule_t count = length(pool, g);
            if (group_of(count) != group || list_of(count, group) != list) {
                return MASS_POOL_E_DAMAGED;
            }
            free_count--;
            previous = g;
            g = load_links(pool, g).next;
        }
    }
    for (unsigned group = 0; group < pool->group_count; group++) {
        if ((pool->list_map[group] != 0) != ((pool->group_map >> group & 1) != 0)) {
            return MASS_POOL_E_UNSOUND;
        }
    }
    return free_count == 0 ? MASS_POOL_OK : MASS_POOL_E_DAMAGED;
}

int mass_pool_check(mass_pool_t *pool) {
    size_t free_count = 0;
    lock(pool);
    int code = check_blocks(pool, &free_count);
    if (code == MASS_POOL_OK) {
        code = check_lists(pool, free_count);
    }
    unlock(pool);
    return code;
}

/* ---- Making and ending a pool ------------------------------------------------------------------- */

static size_t round_up(size_t bytes, size_t step) { return (bytes + step - 1) / step * step; }

static size_t cell_count(size_t granules) { return (granules + 1) / 64 + 1; }

static size_t head_bytes(size_t granules) {
    return (group_of((granule_t)granules) + 1) * LISTS_PER_GROUP * sizeof(granule_t);
}

/* The bytes of state that a pool of so many granules needs, up to where its blocks may begin. */
static size_t state_bytes(size_t granules, size_t step) {
    size_t bytes = sizeof(mass_pool_t) + head_bytes(granules);
    return round_up(bytes + cell_count(granules) * sizeof(cell_t), step);
}

/* The most granules that fit with their state into `bytes`, or 0. */
static size_t granules_within(size_t bytes, size_t step) {
    size_t granules = bytes / GRANULE;
    while (granules != 0 && state_bytes(granules, step) + granules * GRANULE > bytes) {
        size_t excess = state_bytes(granules, step) + granules * GRANULE - bytes;
        size_t fewer = excess / (GRANULE + 1) + 1; /* the state shrinks with them, by 1/64 */
        granules -= fewer < granules ? fewer : granules;
    }
    return granules;
}

/* Makes all granules one free block. */
static void clear(mass_pool_t *pool) {
    granule_t count = pool->granule_count;
    memset(pool->cells, 0, cell_count(count) * sizeof *pool->cells);
    memset(pool->heads, 0, pool->group_count * LISTS_PER_GROUP * sizeof *pool->heads);
    memset(pool->list_map, 0, sizeof pool->list_map);
    pool->group_map = 0;
    pool->used = 0;
    pool->live_count = 0;
    write_live(pool, 0, 1);
    write_live(pool, count + 1, 1);
    poison(pool, 1, count);
    write_free(pool, 1, count);
    link_block(pool, 1, count);
}

static mass_pool_t *set_up(void *state, void *heap, size_t granules) {
    mass_pool_t *pool = state;
    memset(pool, 0, sizeof *pool);
    if (pthread_mutex_init(&pool->mutex, NULL) != 0) {
        return NULL;
    }
    pool->origin = (uintptr_t)heap - GRANULE;
    pool->granule_count = (granule_t)granules;
    pool->link_key = (granule_t)(((uint64_t)pool->origin * 0x9E3779B97F4A7C15U) >> 32) | 1U;
    pool->heads = (granule_t *)(pool + 1);
    pool->group_count = group_of((granule_t)granules) + 1;
    pool->cells = (cell_t *)((unsigned char *)pool->heads + head_bytes(granules));
    clear(pool);
    return pool;
}

mass_pool_t *mass_pool_create(size_t bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (bytes < MASS_POOL_BYTES_MIN || bytes > MASS_POOL_BYTES_MAX) {
        return NULL;
    }
    size_t granules = granules_within(bytes / page * page, page);
    if (granules == 0) {
        return NULL;
    }
    /* state, guard page, blocks, guard page: neither side can run into the other or beyond */
    size_t state = state_bytes(granules, page);
    size_t heap = round_up(granules * GRANULE, page);
    size_t whole = state + page + heap + page;
    unsigned char *base =
        mmap(NULL, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) {
        return NULL;
    }
    mass_pool_t *pool = NULL;
    if (mprotect(base, state, PROT_READ | PROT_WRITE) == 0 &&
        mprotect(base + state + page, heap, PROT_READ | PROT_WRITE) == 0) {
        pool = set_up(base, base + state + page, granules);
    }
    if (pool == NULL) {
        munmap(base, whole);
        return NULL;
    }
    pool->mapping = base;
    pool->mapping_bytes = whole;
    return pool;
}

mass_pool_t *mass_pool_create_over(void *base, size_t bytes) {
    if (base == NULL || bytes > MASS_POOL_BYTES_MAX) {
        return NULL;
    }
    size_t lost = (size_t)-(uintptr_t)base & (GRANULE - 1);
    size_t granules = bytes < lost ? 0 : granules_within(bytes - lost, GRANULE);
    if (granules == 0) {
        return NULL;
    }
    unsigned char *state = (unsigned char *)base + lost;
    return set_up(state, state + state_bytes(granules, GRANULE), granules);
}

void mass_pool_destroy(mass_pool_t *pool) {
    if (pool == NULL) {
        return;
    }
    pthread_mutex_destroy(&pool->mutex);
    if (pool->mapping != NULL) {
        munmap(pool->mapping, pool->mapping_bytes);
    }
}

void mass_pool_reset(mass_pool_t *pool) {
    lock(pool);
    clear(pool);
    unlock(pool);
}

/* ---- The default pool --------------------------------------------------------------------------- */

static _Atomic(mass_pool_t *) default_pool;
static pthread_once_t default_pool_once = PTHREAD_ONCE_INIT;

/* 0 if the text is not a decimal number of bytes within bounds. */
static size_t parse_pool_bytes(const char *text) {
    char *end;
    errno = 0;
    unsigned long long bytes = strtoull(text, &end, 10);
    bool decimal = text[0] >= '0' && text[0] <= '9' && *end == '\0' && errno == 0;
    bool within = bytes >= MASS_POOL_BYTES_MIN && bytes <= MASS_POOL_BYTES_MAX;
    return decimal && within ? (size_t)bytes : 0;
}

static void make_default_pool(void) {
    const char *text = getenv("POOL_BYTES");
    size_t bytes = text == NULL ? MASS_POOL_BYTES_DEFAULT : parse_pool_bytes(text);
    mass_pool_t *pool = mass_pool_create(bytes == 0 ? MASS_POOL_BYTES_DEFAULT : bytes);
    if (bytes == 0) {
        fprintf(stderr, "POOL_BYTES: '%s' is not a number of bytes from %lld to %lld; using %d\n",
                text, (long long)MASS_POOL_BYTES_MIN, (long long)MASS_POOL_BYTES_MAX,
                MASS_POOL_BYTES_DEFAULT);
        fail(pool, MASS_POOL_E_ENVIRONMENT);
    }
    atomic_store_explicit(&default_pool, pool, memory_order_release);
}

mass_pool_t *mass_pool_default(void) {
    mass_pool_t *pool = atomic_load_explicit(&default_pool, memory_order_acquire);
    if (pool == NULL) {
        pthread_once(&default_pool_once, make_default_pool);
        pool = atomic_load_explicit(&default_pool, memory_order_acquire);
    }
    return pool;
}

void *allocate_memory(size_t size) {
    mass_pool_t *pool = mass_pool_default();
    return pool == NULL ? NULL : mass_pool_allocate(pool, size);
}

void *reallocate_memory(void *block, size_t size) {
    mass_pool_t *pool = mass_pool_default();
    return pool == NULL ? NULL : mass_pool_reallocate(pool, block, size);
}

void free_memory(void *block) {
    mass_pool_t *pool = mass_pool_default();
    if (pool != NULL) {
        mass_pool_free(pool, block);
    }
}

void reset_memory_pool(void) {
    mass_pool_t *pool = mass_pool_default();
    if (pool != NULL) {
        mass_pool_reset(pool);
    }
}

/* The pool allocator. The idea, in one sitting:
 *
 * Memory is cut into granules of 16 bytes, numbered from 1. Blocks, live or free, tile it without
 * gap, and two free blocks never touch. Nothing stands in front of a block; what is known of it
 * stands beside the heap, in two bits per granule kept as pairs of words (cell_t):
 *
 *     start used
 *       1    1    first granule of a live block
 *       1    0    first granule of a free block
 *       0    1    last granule of a free block of two granules or more
 *       0    0    any other granule
 *
 * A cell whose 64 granules all lie behind the first granule of one block is covered by it. The
 * first and the last cell that a block covers hold its length in granules in the start word and all
 * ones in the used word (those between are zero). No bits look like that: used all ones leaves the
 * start word with its bits 1 to 63 set, and a length is below 2^33. So the length of a block is the
 * distance to the next start bit in its own cell, else the length in the next cell, else the
 * distance to the first start bit there: two cells at most, no loop. The same holds backwards from
 * the end of a free block. Granules 0 and N + 1 are fences, live blocks for ever.
 *
 * Free blocks hang in doubly linked lists by size: 64 lists for each power of two, exact below 128
 * granules. A bit per list and a bit per group of 64 find the next list that is not empty with two
 * bit scans. The links are granule numbers in the first 8 bytes of the free block, the only state
 * inside the heap. Both directions are compared on removal; when they disagree somebody has written
 * to freed memory, and since the cells know everything, the lists are simply made anew from them.
 *
 * So a pointer is the start of a live block or it is not, exactly, and an overrun reaches other
 * blocks but never the state.
 *
 * pool_state.h has the cells, pool_lists.h the lists, pool_seals.h what hardening adds,
 * pool_blocks.h makes blocks of them and pool_check.h proves that all is sound. Here are the
 * calls, the lock and the making of pools.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "memory_allocator.h"
#include "pool_blocks.h"
#include "pool_check.h"
#include "pool_lists.h"
#include "pool_seals.h"
#include "pool_state.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* ---- Errors ---------------------------------------------------------------------------------- */

/* Like errno: what failed last on this thread, and where. */
static _Thread_local const mass_pool_t *last_error_pool;
static _Thread_local int last_error_code;

static void fail(const mass_pool_t *pool, int code) {
    last_error_pool = pool;
    last_error_code = code;
}

/* Misuse and damage: here the caller goes on with a refusal, the hardened pool ends. */
static void report(const mass_pool_t *pool, int code, const void *block) {
    if (HARDENED) {
        fprintf(stderr, "mass_pool %p: block %p: %s\n", (const void *)pool, block,
                mass_pool_error_text(code));
        abort();
    }
    fail(pool, code);
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

/* ---- The lock -------------------------------------------------------------------------------- */

/* A call holds the lock for some 20 ns, so a waiter looks a few hundred cycles long and only then
 * sleeps. It sleeps for a time and not until a wake-up: a wake-up would cost every unlock a
 * second atomic exchange, a fifth of the whole call, for a case that hardly ever comes. */
#define SPIN_ROUNDS 200U
#define NAP_NS 20000L

static __attribute__((noinline)) void lock_contended(mass_pool_t *pool) {
    const struct timespec nap = {0, NAP_NS};
    atomic_fetch_add_explicit(&pool->waiting, 1, memory_order_relaxed);
    for (unsigned round = 1;; round++) {
        if (atomic_load_explicit(&pool->lock, memory_order_relaxed) == 0 &&
            atomic_exchange_explicit(&pool->lock, 1, memory_order_acquire) == 0) {
            break;
        }
        if (round % SPIN_ROUNDS == 0) {
            nanosleep(&nap, NULL);
        }
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
    }
    atomic_fetch_sub_explicit(&pool->waiting, 1, memory_order_relaxed);
}

INTERNAL void lock(mass_pool_t *pool) {
    if (unlikely(atomic_exchange_explicit(&pool->lock, 1, memory_order_acquire) != 0)) {
        lock_contended(pool);
    }
}

INTERNAL void unlock(mass_pool_t *pool) {
    atomic_store_explicit(&pool->lock, 0, memory_order_release);
}

/* After a linear call: a thread that makes one after the other would hold the lock whenever a
 * waiter wakes up, so it sleeps too while there are any. */
static void unlock_after_long(mass_pool_t *pool) {
    const struct timespec nap = {0, 2 * NAP_NS};
    unlock(pool);
    if (atomic_load_explicit(&pool->waiting, memory_order_relaxed) != 0) {
        nanosleep(&nap, NULL);
    }
}

/* ---- Allocate and free ----------------------------------------------------------------------- */

static __attribute__((noinline)) void *refuse(mass_pool_t *pool, int code) {
    pool->failure_count++;
    unlock(pool);
    fail(pool, code);
    return NULL;
}

static __attribute__((noinline)) int refuse_pointer(mass_pool_t *pool, int code,
                                                    const void *block) {
    pool->wrong_free_count++;
    unlock(pool);
    report(pool, code, block);
    return code;
}

/* The common end of everything that hands out a block. */
INTERNAL void *hand_out(mass_pool_t *pool, granule_t g, granule_t count, size_t size) {
    note_peak(pool);
    seal(pool, g, count, size);
    unlock(pool);
    return address(pool, g);
}

INTERNAL void *allocate(mass_pool_t *pool, size_t size) {
    granule_t count = granules_for(pool, size);
    lock(pool);
    granule_t g = likely(count != 0) ? allocate_granules(pool, count) : 0;
    if (unlikely(g == 0)) {
        return refuse(pool, count == 0 ? MASS_POOL_E_SIZE : MASS_POOL_E_EXHAUSTED);
    }
    pool->allocation_count++;
    pool->live_count++;
    return hand_out(pool, g, count, size);
}

INTERNAL int free_block(mass_pool_t *pool, void *block) {
    granule_t g = 0;
    if (block == NULL) {
        return MASS_POOL_OK;
    }
    lock(pool);
    int code = find_live(pool, block, &g);
    if (unlikely(code != MASS_POOL_OK)) {
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

void *mass_pool_allocate(mass_pool_t *pool, size_t size) { return allocate(pool, size); }

int mass_pool_free(mass_pool_t *pool, void *block) { return free_block(pool, block); }

void *mass_pool_allocate_aligned(mass_pool_t *pool, size_t alignment, size_t size) {
    if (alignment == 0 || (alignment & (alignment - 1)) != 0) {
        fail(pool, MASS_POOL_E_ALIGNMENT);
        return NULL;
    }
    granule_t count = granules_for(pool, size);
    size_t spare = alignment > GRANULE ? alignment / GRANULE - 1 : 0;
    lock(pool);
    if (count == 0 || spare > pool->granule_count - count) {
        return refuse(pool, MASS_POOL_E_SIZE);
    }
    granule_t whole = count + (granule_t)spare; /* holds an aligned start wherever it lies */
    granule_t g = allocate_granules(pool, whole);
    if (g == 0) {
        return refuse(pool, MASS_POOL_E_EXHAUSTED);
    }
    uintptr_t past = (uintptr_t)address(pool, g) & (alignment - 1);
    granule_t skipped = past == 0 ? 0 : (granule_t)((alignment - past) / GRANULE);
    if (skipped != 0) {
        split_live(pool, g, whole, skipped);
        free_granules(pool, g, skipped);
        g += skipped;
        whole -= skipped;
    }
    if (whole > count) {
        trim(pool, g, whole, count);
    }
    pool->allocation_count++;
    pool->live_count++;
    return hand_out(pool, g, count, size);
}

/* ---- Reallocate ------------------------------------------------------------------------------ */

/* Ends a reallocation that found room elsewhere. The bytes are copied without the lock (both blocks
 * are the caller's), so that one large move does not hold up everybody else. */
static void *move(mass_pool_t *pool, void *block, granule_t fresh, size_t keep_bytes) {
    granule_t g = 0;
    void *moved = address(pool, fresh);
    unlock(pool);
    memcpy(moved, block, keep_bytes);
    lock(pool);
    int code = find_live(pool, block, &g);
    if (code != MASS_POOL_OK) { /* another thread freed it meanwhile: that was the mistake */
        refuse_pointer(pool, code, block);
        return moved;
    }
    free_granules(pool, g, length(pool, g));
    pool->live_count--;
    unlock(pool);
    return moved;
}

void *mass_pool_reallocate(mass_pool_t *pool, void *block, size_t size) {
    granule_t g = 0;
    if (block == NULL) {
        return allocate(pool, size);
    }
    granule_t count = granules_for(pool, size);
    lock(pool);
    int code = find_live(pool, block, &g);
    if (code != MASS_POOL_OK) {
        refuse_pointer(pool, code, block);
        return NULL;
    }
    if (count == 0) {
        return refuse(pool, MASS_POOL_E_SIZE);
    }
    granule_t old = length(pool, g);
    size_t old_bytes = sealed_size(pool, g, old);
    if (HARDENED && old_bytes == SIZE_MAX) {
        report(pool, MASS_POOL_E_OVERRUN, block);
    }
    if (count < old) {
        trim(pool, g, old, count);
    } else if (count > old && !grow_in_place(pool, g, old, count)) {
        granule_t fresh = allocate_granules(pool, count);
        if (fresh != 0) {
            pool->reallocation_count++;
            pool->live_count++;
            note_peak(pool);
            seal(pool, fresh, count, size);
            return move(pool, block, fresh, old_bytes);
        }
        g = slide(pool, g, old, count, old_bytes);
        if (g == 0) {
            return refuse(pool, MASS_POOL_E_EXHAUSTED);
        }
    }
    pool->reallocation_count++;
    return hand_out(pool, g, count, size);
}

/* ---- Questions ------------------------------------------------------------------------------- */

size_t mass_pool_size_of(mass_pool_t *pool, const void *block) {
    granule_t g = 0;
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
    granule_t largest = largest_free(pool);
    size_t largest_bytes = largest == 0 ? 0 : length(pool, largest) * GRANULE;
    size_t seal_bytes = HARDENED ? SEAL_BYTES : 0;
    *out = (mass_pool_statistics_t){
        .capacity_bytes = pool->granule_count * GRANULE,
        .used_bytes = pool->used * GRANULE,
        .used_peak_bytes = pool->used_peak * GRANULE,
        .largest_free_bytes = largest_bytes > seal_bytes ? largest_bytes - seal_bytes : 0,
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
        size_t bytes = length(pool, g) * GRANULE;
        result = visit(context, address(pool, g), bytes, is_live(pool, g));
    }
    unlock_after_long(pool);
    return result;
}

int mass_pool_check(mass_pool_t *pool) {
    size_t free_count = 0;
    lock(pool);
    int code = check_blocks(pool, &free_count);
    if (code == MASS_POOL_OK) {
        code = check_lists(pool, free_count);
    }
    unlock_after_long(pool);
    return code;
}

/* ---- Making and ending a pool ---------------------------------------------------------------- */

static size_t round_up(size_t bytes, size_t step) { return (bytes + step - 1) / step * step; }

/* One spare cell on either side, so that looking at a neighbour needs no question. */
static size_t cell_bytes(size_t granules) {
    return ((granules + 1) / CELL_GRANULES + 3) * sizeof(cell_t);
}

static size_t head_bytes(size_t granules) {
    return (group_of((granule_t)granules) + 1) * LISTS_PER_GROUP * sizeof(link_t);
}

/* The bytes of state that a pool of so many granules needs, up to where its blocks may begin. */
static size_t state_bytes(size_t granules, size_t step) {
    size_t bytes = sizeof(mass_pool_t) + head_bytes(granules) + cell_bytes(granules);
    return round_up(bytes, step);
}

/* The most granules that fit into `bytes` with their state, or 0. */
static size_t granules_within(size_t bytes, size_t step) {
    size_t granules = bytes / GRANULE;
    while (granules != 0 && state_bytes(granules, step) + granules * GRANULE > bytes) {
        size_t excess = state_bytes(granules, step) + granules * GRANULE - bytes;
        size_t fewer = excess / (GRANULE + 1) + 1; /* the state shrinks with them, by 1/64 */
        granules -= fewer < granules ? fewer : granules;
    }
    return granules;
}

/* Makes all granules one free block; the cells are zero. */
static void make_one_block(mass_pool_t *pool) {
    granule_t count = pool->granule_count;
    clear_lists(pool);
    pool->used = 0;
    pool->live_count = 0;
    write_live(pool, 0, 1);
    write_live(pool, count + 1, 1);
    poison(pool, 1, count);
    write_free(pool, 1, count);
    link_block(pool, 1, count);
}

/* The state is zero: a mapping is, and writing zeros there would only make its pages real. */
static mass_pool_t *set_up(void *state, void *heap, size_t granules) {
    mass_pool_t *pool = state;
    atomic_init(&pool->lock, 0);
    pool->origin = (uintptr_t)heap - GRANULE;
    pool->key = (link_t)(((uint64_t)pool->origin * 0x9E3779B97F4A7C15U) >> 32) | 1U << 31;
    pool->granule_count = (granule_t)granules;
    pool->group_count = group_of((granule_t)granules) + 1;
    pool->heads = (link_t *)(pool + 1);
    pool->cells = (cell_t *)((unsigned char *)pool->heads + head_bytes(granules)) + 1;
    make_one_block(pool);
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
    /* state, guard page, blocks, guard page: blocks can run neither into the state nor beyond */
    size_t state = state_bytes(granules, page);
    size_t heap = round_up(granules * GRANULE, page);
    size_t whole = state + page + heap + page;
    unsigned char *base = mmap(NULL, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) {
        return NULL;
    }
    if (mprotect(base, state, PROT_READ | PROT_WRITE) != 0 ||
        mprotect(base + state + page, heap, PROT_READ | PROT_WRITE) != 0) {
        munmap(base, whole);
        return NULL;
    }
    mass_pool_t *pool = set_up(base, base + state + page, granules);
    pool->mapping = base;
    pool->mapping_bytes = whole;
    return pool;
}

mass_pool_t *mass_pool_create_over(void *base, size_t bytes) {
    if (base == NULL || bytes > MASS_POOL_BYTES_MAX) {
        return NULL;
    }
    size_t lost = (size_t)-(uintptr_t)base % GRANULE;
    size_t granules = bytes < lost ? 0 : granules_within(bytes - lost, GRANULE);
    if (granules == 0) {
        return NULL;
    }
    unsigned char *state = (unsigned char *)base + lost;
    unsigned char *heap = state + state_bytes(granules, GRANULE);
    memset(state, 0, (size_t)(heap - state));
    return set_up(state, heap, granules);
}

void mass_pool_destroy(mass_pool_t *pool) {
    if (pool != NULL && pool->mapping != NULL) {
        munmap(pool->mapping, pool->mapping_bytes);
    }
}

void mass_pool_reset(mass_pool_t *pool) {
    lock(pool);
    memset(pool->cells - 1, 0, cell_bytes(pool->granule_count));
    make_one_block(pool);
    unlock_after_long(pool);
}

/* ---- The default pool ------------------------------------------------------------------------ */

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

/* A child of fork has only the thread that forked: nobody may be inside the pool at that moment. */
static void lock_default_pool(void) { lock(default_pool); }

static void unlock_default_pool(void) { unlock(default_pool); }

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
    if (pool != NULL) {
        pthread_atfork(lock_default_pool, unlock_default_pool, unlock_default_pool);
    }
}

INTERNAL mass_pool_t *get_default_pool(void) {
    mass_pool_t *pool = atomic_load_explicit(&default_pool, memory_order_acquire);
    if (unlikely(pool == NULL)) {
        pthread_once(&default_pool_once, make_default_pool);
        pool = atomic_load_explicit(&default_pool, memory_order_acquire);
    }
    return pool;
}

mass_pool_t *mass_pool_default(void) { return get_default_pool(); }

void *allocate_memory(size_t size) {
    mass_pool_t *pool = get_default_pool();
    return pool == NULL ? NULL : allocate(pool, size);
}

void *reallocate_memory(void *block, size_t size) {
    mass_pool_t *pool = get_default_pool();
    return pool == NULL ? NULL : mass_pool_reallocate(pool, block, size);
}

void free_memory(void *block) {
    mass_pool_t *pool = get_default_pool();
    if (pool != NULL) {
        free_block(pool, block);
    }
}

void reset_memory_pool(void) {
    mass_pool_t *pool = get_default_pool();
    if (pool != NULL) {
        mass_pool_reset(pool);
    }
}

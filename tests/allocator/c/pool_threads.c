/* Goal: eight threads on one nearly full pool, freeing each other's blocks, neither lose nor share
 * a byte.
 * Method: each thread allocates, reallocates and frees in its own slots, and drops every fourth
 * block into a mailbox from which whoever comes next frees it. A block carries its size in front
 * and its owner's byte everywhere else; both are compared before the block is freed. One
 * more thread checks the pool all the time. The slots and mailboxes of two threads alone would
 * overfill the pool, so it is nearly full however they run. At the end everything is free again.
 * Usage: pool_threads STEPS.
 */
#include "expect.h"
#include "memory_allocator.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

enum { THREADS = 8, SLOTS = 64, MAILBOXES = 32, SIZE_MAX_BYTES = 1200, POOL_BYTES = 40960 };

typedef struct {
    uint32_t size;
    uint32_t mark;
    unsigned char bytes[];
} block_t;

static mass_pool_t *pool;
static _Atomic(block_t *) mailboxes[MAILBOXES];
static atomic_int running;
static atomic_long failures;
static int steps;

static void fill(block_t *block, uint32_t size, uint32_t mark) {
    block->size = size;
    block->mark = mark;
    memset(block->bytes, (int)mark, size - sizeof *block);
}

static void expect_intact(const block_t *block, uint32_t size) {
    for (uint32_t i = 0; i < size - sizeof *block; i++) {
        EXPECT(block->bytes[i] == (unsigned char)block->mark);
    }
}

static void release(block_t *block) {
    if (block != NULL) {
        expect_intact(block, block->size);
        EXPECT(mass_pool_free(pool, block) == MASS_POOL_OK);
    }
}

static uint64_t draw(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state >> 8;
}

static void resize(block_t **slot, uint32_t size) {
    block_t *old = *slot;
    uint32_t old_size = old->size;
    uint32_t mark = old->mark;
    block_t *moved = mass_pool_reallocate(pool, old, size);
    if (moved == NULL) {
        atomic_fetch_add(&failures, 1);
        return;
    }
    EXPECT(moved->size == old_size && moved->mark == mark);
    expect_intact(moved, size < old_size ? size : old_size);
    fill(moved, size, mark);
    *slot = moved;
}

static void *work(void *argument) {
    uint32_t self = (uint32_t)(uintptr_t)argument;
    uint64_t state = 0x9E3779B97F4A7C15u * self;
    block_t *slots[SLOTS] = {NULL};
    for (int i = 0; i < steps; i++) {
        block_t **slot = &slots[draw(&state) % SLOTS];
        uint32_t size = (uint32_t)(sizeof(block_t) + draw(&state) % SIZE_MAX_BYTES);
        uint64_t choice = draw(&state) % 4;
        if (*slot == NULL) {
            *slot = mass_pool_allocate(pool, size);
            if (*slot == NULL) {
                EXPECT(mass_pool_last_error(pool) == MASS_POOL_E_EXHAUSTED);
                atomic_fetch_add(&failures, 1);
            } else {
                fill(*slot, size, self);
            }
        } else if (choice == 0) {
            release(atomic_exchange(&mailboxes[draw(&state) % MAILBOXES], *slot));
            *slot = NULL;
        } else if (choice == 1) {
            resize(slot, size);
        } else {
            release(*slot);
            *slot = NULL;
        }
    }
    for (int i = 0; i < SLOTS; i++) {
        release(slots[i]);
    }
    atomic_fetch_sub(&running, 1);
    return NULL;
}

static void *watch(void *argument) {
    mass_pool_statistics_t now;
    (void)argument;
    while (atomic_load(&running) > 0) {
        EXPECT(mass_pool_check(pool) == MASS_POOL_OK);
        mass_pool_statistics(pool, &now);
        EXPECT(now.used_bytes <= now.used_peak_bytes);
        EXPECT(now.used_peak_bytes <= now.capacity_bytes);
        EXPECT(now.live_count >= now.allocation_count - now.free_count);
    }
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[THREADS + 1];
    mass_pool_statistics_t now;
    EXPECT(argc == 2);
    steps = atoi(argv[1]);
    pool = mass_pool_create(POOL_BYTES);
    EXPECT(pool != NULL);
    atomic_store(&running, THREADS);
    for (uintptr_t i = 0; i < THREADS; i++) {
        EXPECT(pthread_create(&threads[i], NULL, work, (void *)(i + 1)) == 0);
    }
    EXPECT(pthread_create(&threads[THREADS], NULL, watch, NULL) == 0);
    for (int i = 0; i <= THREADS; i++) {
        EXPECT(pthread_join(threads[i], NULL) == 0);
    }
    for (int i = 0; i < MAILBOXES; i++) {
        release(atomic_load(&mailboxes[i]));
    }
    mass_pool_statistics(pool, &now);
    EXPECT(atomic_load(&failures) > 0); /* else the pool was never full */
    EXPECT(now.failure_count == (uint64_t)atomic_load(&failures));
    EXPECT(now.used_bytes == 0 && now.live_count == 0 && now.wrong_free_count == 0);
    EXPECT(now.largest_free_bytes + 16 >= now.capacity_bytes); /* 16: the hardened seal */
    EXPECT(mass_pool_check(pool) == MASS_POOL_OK);
    mass_pool_destroy(pool);
    return 0;
}

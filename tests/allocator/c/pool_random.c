/* Goal: long random lives of pools of many sizes keep every promise that a caller can see.
 * Method: 64 slots of random sizes and alignments over pools that are nearly full, every block
 * filled with its slot's pattern and compared before each step, the pool's own check after it.
 * Built hardened as well: then any step that wrote where it must not ends in abort.
 * Usage: pool_random ROUNDS STEPS.
 */
#include "expect.h"
#include "memory_allocator.h"

#include <stdint.h>

enum { SLOTS = 64, MEMORY_BYTES = 60000 };

static _Alignas(16) unsigned char memory[MEMORY_BYTES];
static uint64_t state;

static size_t draw(size_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (size_t)(state % below);
}

typedef struct {
    unsigned char *block;
    size_t size;
} slot_t;

/* Each byte says its place too, so that bytes moved to a wrong place are found. */
static unsigned char byte_at(size_t slot, size_t i) { return (unsigned char)(slot * 7 + i * 13); }

static void fill(unsigned char *block, size_t size, size_t slot) {
    for (size_t i = 0; i < size; i++) {
        block[i] = byte_at(slot, i);
    }
}

static void expect_filled(const unsigned char *block, size_t size, size_t slot) {
    for (size_t i = 0; i < size; i++) {
        EXPECT(block[i] == byte_at(slot, i));
    }
}

static void step(mass_pool_t *pool, slot_t *slots, size_t index) {
    slot_t *slot = &slots[index];
    size_t size = draw(4) == 0 ? draw(6000) : draw(300);
    size_t alignment = (size_t)16 << draw(7);
    expect_filled(slot->block, slot->size, index);
    if (slot->block == NULL) {
        slot->block = mass_pool_allocate_aligned(pool, alignment, size);
        EXPECT((uintptr_t)slot->block % alignment == 0);
        slot->size = slot->block == NULL ? 0 : size;
    } else if (draw(2) == 0) {
        EXPECT(mass_pool_free(pool, slot->block) == MASS_POOL_OK);
        EXPECT(mass_pool_size_of(pool, slot->block) == 0);
        *slot = (slot_t){NULL, 0};
    } else {
        unsigned char *moved = mass_pool_reallocate(pool, slot->block, size);
        if (moved != NULL) {
            expect_filled(moved, size < slot->size ? size : slot->size, index);
            *slot = (slot_t){moved, size};
        }
    }
    if (slot->block != NULL) {
        EXPECT(mass_pool_size_of(pool, slot->block) >= slot->size);
        fill(slot->block, slot->size, index);
    }
    EXPECT(mass_pool_check(pool) == MASS_POOL_OK);
}

/* What is reported as the largest free block can be had at once. */
static void expect_largest(mass_pool_t *pool) {
    mass_pool_statistics_t now;
    mass_pool_statistics(pool, &now);
    if (now.largest_free_bytes != 0) {
        void *block = mass_pool_allocate(pool, now.largest_free_bytes);
        EXPECT(block != NULL);
        EXPECT(mass_pool_free(pool, block) == MASS_POOL_OK);
    }
}

static void live(size_t bytes, int steps) {
    slot_t slots[SLOTS] = {{NULL, 0}};
    mass_pool_statistics_t now;
    mass_pool_t *pool = mass_pool_create_over(memory + draw(16), bytes - 16);
    EXPECT(pool != NULL);
    for (int i = 0; i < steps; i++) {
        step(pool, slots, draw(SLOTS));
    }
    expect_largest(pool);
    for (size_t i = 0; i < SLOTS; i++) {
        EXPECT(mass_pool_free(pool, slots[i].block) == MASS_POOL_OK);
    }
    mass_pool_statistics(pool, &now);
    EXPECT(now.used_bytes == 0 && now.live_count == 0 && now.wrong_free_count == 0);
    EXPECT(now.allocation_count == now.free_count && now.used_peak_bytes <= now.capacity_bytes);
    EXPECT(now.largest_free_bytes + 16 >= now.capacity_bytes); /* 16: the hardened seal */
    mass_pool_destroy(pool);
}

int main(int argc, char **argv) {
    EXPECT(argc == 3);
    for (int round = 0; round < atoi(argv[1]); round++) {
        state = 0x9E3779B97F4A7C15u + (uint64_t)round;
        live(2000 + draw(MEMORY_BYTES - 2000), atoi(argv[2]));
    }
    return 0;
}

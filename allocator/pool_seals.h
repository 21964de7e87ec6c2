/* Internal to memory_allocator.c: what the hardened build adds. A live block ends in canaries and,
 * in its last 8 bytes, the disguised size that was asked for; a free block is poison but for its
 * links. Without MASS_HARDENED all of this is nothing.
 */
#ifndef MASS_POOL_SEALS_H
#define MASS_POOL_SEALS_H

#include "pool_lists.h"

#include <string.h>

#ifdef MASS_HARDENED
#define HARDENED 1
#else
#define HARDENED 0
#endif
#define SEAL_BYTES 16U /* at least 8 bytes of canary, and the size */
#define CANARY_BYTE 0xCA
#define POISON_BYTE 0xDD

static inline uint64_t seal_of(const mass_pool_t *pool, granule_t g, size_t size) {
    return (uint64_t)size ^ 0xA5C3F00D5EA1B10CU ^ (uint64_t)pool->origin ^ ((uint64_t)g << 40);
}

static inline void seal(const mass_pool_t *pool, granule_t g, granule_t count, size_t size) {
    if (HARDENED) {
        unsigned char *block = address(pool, g);
        size_t end = (size_t)count * GRANULE - sizeof(uint64_t);
        uint64_t word = seal_of(pool, g, size);
        memset(block + size, CANARY_BYTE, end - size);
        memcpy(block + end, &word, sizeof word);
    }
}

/* The size that was asked for, or SIZE_MAX if the seal is broken. Not hardened: all of the
 * block. */
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

static inline void poison(const mass_pool_t *pool, granule_t g, granule_t count) {
    if (HARDENED) {
        memset(address(pool, g), POISON_BYTE, (size_t)count * GRANULE);
    }
}

/* A block that hangs in a list has links in its first `skipped` bytes. */
static inline bool is_poison(const mass_pool_t *pool, granule_t g, granule_t count,
                             size_t skipped) {
    const unsigned char *memory = address(pool, g);
    for (size_t i = skipped; i < (size_t)count * GRANULE; i++) {
        if (memory[i] != POISON_BYTE) {
            return false;
        }
    }
    return true;
}

#endif

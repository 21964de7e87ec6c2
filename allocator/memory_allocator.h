/* A memory pool of fixed size: the specification.
 *
 * A pool hands out blocks from one piece of memory whose size never changes and which holds all of
 * the pool's own state too: nothing is taken from the system after create. Every call is safe
 * from any thread (one lock per pool), and every call except those marked "linear" takes constant
 * time in the worst case, apart from copying the bytes of a block that has to move.
 *
 * Blocks are aligned to 16 bytes, their memory is not zeroed, and a size of 0 counts as 1. A call
 * that fails changes nothing and says why through `mass_pool_last_error`. A pointer that is not
 * the start of a live block is refused and counted, whatever happened before; it is never believed.
 *
 * After fork the child may use the default pool, and another one only if no thread was inside it.
 *
 * Compiled with -DMASS_HARDENED every misuse ends in abort() with one line on stderr. Blocks
 * then carry a canary behind their last byte and freed memory is poisoned, so overruns and
 * writes after free are caught too; calls become linear in the size of their block.
 *
 * The declarations between the cffi marks are read by build.py: plain C only, no conditionals.
 */
#ifndef MASS_MEMORY_ALLOCATOR_H
#define MASS_MEMORY_ALLOCATOR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* cffi: begin */

#define MASS_POOL_ALIGNMENT 16             /* bytes; every block starts at a multiple of it */
#define MASS_POOL_BYTES_DEFAULT 67108864   /* the default pool without POOL_BYTES: 64 MiB */
#define MASS_POOL_BYTES_MIN 8192           /* the smallest pool that create makes */
#define MASS_POOL_BYTES_MAX 68719476736    /* the largest, 64 GiB: granule numbers have 32 bits */

enum mass_pool_error {
    MASS_POOL_OK = 0,
    MASS_POOL_E_EXHAUSTED = 1,   /* no free block is large enough now */
    MASS_POOL_E_SIZE = 2,        /* more than an empty pool of this size could give */
    MASS_POOL_E_ALIGNMENT = 3,   /* the alignment is not a power of two */
    MASS_POOL_E_FOREIGN = 4,     /* the pointer does not lie in this pool */
    MASS_POOL_E_INTERIOR = 5,    /* the pointer lies inside a live block, not at its start */
    MASS_POOL_E_DOUBLE_FREE = 6, /* the pointer lies in memory that is free already */
    MASS_POOL_E_DAMAGED = 7,     /* free memory was written to: a free list is spoilt */
    MASS_POOL_E_OVERRUN = 8,     /* hardened only: the bytes behind a live block were written to */
    MASS_POOL_E_UNSOUND = 9,     /* check: the pool's own state contradicts itself */
    MASS_POOL_E_ENVIRONMENT = 10 /* POOL_BYTES is no size; the default size is used */
};

typedef struct mass_pool mass_pool_t;

/* Bytes count whole granules of 16 as blocks occupy them; counts run from create and never fall. */
typedef struct {
    size_t capacity_bytes;         /* what blocks can occupy in total; constant */
    size_t used_bytes;             /* occupied by live blocks now */
    size_t used_peak_bytes;        /* the highest used_bytes since create */
    size_t largest_free_bytes;     /* an allocation of this size succeeds now; at most 1/64 below
                                      the largest free block */
    size_t live_count;             /* live blocks now; one that is being moved counts twice */
    uint64_t allocation_count;     /* allocations that succeeded, aligned ones and those by
                                      reallocating NULL included */
    uint64_t reallocation_count;   /* reallocations of a block that succeeded */
    uint64_t free_count;           /* frees of a block that succeeded */
    uint64_t failure_count;        /* allocations and reallocations refused for want of room */
    uint64_t wrong_free_count;     /* pointers refused by free and reallocate */
    uint64_t damage_count;         /* times the free lists were found spoilt and made anew */
} mass_pool_statistics_t;

/* Makes a pool of `bytes` (rounded down to whole pages, state included) in a mapping of its own
 * with an inaccessible page below and above the blocks; the system provides the pages when they are
 * first written to. Returns NULL iff bytes is below two pages, outside MASS_POOL_BYTES_MIN..MAX or
 * the system refuses the mapping. */
mass_pool_t *mass_pool_create(size_t bytes);

/* Makes a pool in the caller's memory [base, base + bytes), which must stay until destroy; its
 * state lies at the low end. Linear in bytes / 64. Returns NULL iff base is NULL, bytes exceeds
 * MASS_POOL_BYTES_MAX or state and one block of 16 bytes do not fit (about 1 KiB). */
mass_pool_t *mass_pool_create_over(void *base, size_t bytes);

/* Ends the pool and returns its own mapping; all its blocks are gone. NULL is ignored. No other
 * thread may be using the pool. */
void mass_pool_destroy(mass_pool_t *pool);

/* Returns a block of at least `size` bytes, or NULL: E_EXHAUSTED, E_SIZE. It fails only if every
 * free block is smaller than size plus 1/64 (up to 2 KiB: than size). */
void *mass_pool_allocate(mass_pool_t *pool, size_t size);

/* The same at a multiple of `alignment`, a power of two; it may fail unless a free block of
 * size + alignment exists. NULL: E_EXHAUSTED, E_SIZE, E_ALIGNMENT. */
void *mass_pool_allocate_aligned(mass_pool_t *pool, size_t alignment, size_t size);

/* Changes the size of a block and returns it, moved if need be, with its content up to the
 * smaller size. Shrinking always succeeds in place; growing uses the free block behind, else a
 * fresh block, else slides into the free block in front. A moved block keeps the 16-byte
 * alignment only. `block` NULL allocates; size 0 shrinks to the smallest block and does not
 * free. Returns NULL and leaves the block as it was: E_EXHAUSTED, E_SIZE, and the codes of
 * mass_pool_free. */
void *mass_pool_reallocate(mass_pool_t *pool, void *block, size_t size);

/* Frees a block. Returns MASS_POOL_OK (also for NULL), or refuses: E_FOREIGN, E_INTERIOR,
 * E_DOUBLE_FREE (a refusal may be linear in the size of the block pointed into). */
int mass_pool_free(mass_pool_t *pool, void *block);

/* Frees every block at once; counts and peak stay. Linear in capacity / 64. Pointers into the pool
 * become wrong ones, but one may meet the start of a newer block: reset is for a time when nobody
 * holds any. */
void mass_pool_reset(mass_pool_t *pool);

/* Returns how many bytes of a live block may be used (hardened: exactly those asked for), or 0 if
 * the pointer is not the start of a live block; neither counted nor an error. */
size_t mass_pool_size_of(mass_pool_t *pool, const void *block);

void mass_pool_statistics(mass_pool_t *pool, mass_pool_statistics_t *out);

/* Walks all blocks and lists. Linear. Returns MASS_POOL_OK, E_UNSOUND, E_DAMAGED, or hardened also
 * E_OVERRUN and E_DAMAGED for poison overwritten. Never aborts, changes nothing. */
int mass_pool_check(mass_pool_t *pool);

/* Calls `visit` for every block in address order, live and free, with the lock held: the visitor
 * must not call the pool. Linear. Stops at the first result that is not 0 and returns it. */
typedef int (*mass_pool_visitor_t)(void *context, void *block, size_t bytes, int is_live);
int mass_pool_walk(mass_pool_t *pool, mass_pool_visitor_t visit, void *context);

/* Returns the code of the calling thread's last failed call if that was on this pool, else
 * MASS_POOL_OK. Success does not clear it. */
int mass_pool_last_error(const mass_pool_t *pool);

/* Returns a sentence for a code; never NULL. */
const char *mass_pool_error_text(int code);

/* The default pool: made at its first use with the size POOL_BYTES of the environment (decimal
 * bytes, MASS_POOL_BYTES_MIN..MAX), MASS_POOL_BYTES_DEFAULT without it. A POOL_BYTES that is no
 * such number is named in one line on stderr, the default size is used and the last error of the
 * thread that made the pool is E_ENVIRONMENT. NULL iff the system refuses the mapping. */
mass_pool_t *mass_pool_default(void);

/* The four calls on the default pool, as above; NULL or nothing if there is no default pool. */
void *allocate_memory(size_t size);
void *reallocate_memory(void *block, size_t size);
void free_memory(void *block);
void reset_memory_pool(void);

/* cffi: end */

#ifdef __cplusplus
}
#endif

#endif

/* Goal: every kind of misuse is refused, counted and harmless, or ends a hardened build.
 * Method: one case per run, named on the command line. In the default build the case itself
 * compares the code, and main that the pool is sound and hands out no memory twice. A hardened
 * build must not come as far as that, except where a case says so.
 * Usage: pool_misuse CASE.
 */
#include "expect.h"
#include "memory_allocator.h"

#include <stdint.h>
#include <string.h>

enum { SIZE = 48, MANY = 400 };

static mass_pool_t *pool;
static unsigned char *a, *b, *c, *guard;
static size_t wrong_count, damage_count;

static void refused(int code, void *block) {
    wrong_count++;
    EXPECT(mass_pool_free(pool, block) == code);
    EXPECT(mass_pool_last_error(pool) == code);
}

static void freed(void *block) { EXPECT(mass_pool_free(pool, block) == MASS_POOL_OK); }

static void double_free(void) {
    freed(b);
    refused(MASS_POOL_E_DOUBLE_FREE, b);
}

static void double_free_after_others(void) {
    void *others[MANY];
    for (int i = 0; i < MANY; i++) {
        others[i] = mass_pool_allocate(pool, SIZE);
    }
    freed(b);
    for (int i = 0; i < MANY; i += 2) {
        freed(others[i]);
    }
    refused(MASS_POOL_E_DOUBLE_FREE, b);
}

static void double_free_in_joined_memory(void) {
    freed(a);
    freed(b);
    freed(c);
    refused(MASS_POOL_E_DOUBLE_FREE, b);
}

static void free_inside_reused_memory(void) {
    freed(a);
    freed(b);
    freed(c);
    EXPECT(mass_pool_allocate(pool, 3 * SIZE) == a);
    refused(MASS_POOL_E_INTERIOR, b);
}

static void interior_pointer(void) { refused(MASS_POOL_E_INTERIOR, b + 16); }

static void misaligned_pointer(void) { refused(MASS_POOL_E_INTERIOR, b + 1); }

static void pointer_into_large_block(void) {
    unsigned char *large = mass_pool_allocate(pool, 100000);
    refused(MASS_POOL_E_INTERIOR, large + 50000);
    refused(MASS_POOL_E_INTERIOR, large + 1024);
    freed(large);
    refused(MASS_POOL_E_DOUBLE_FREE, large + 50000);
}

static void foreign_pointer(void) {
    static unsigned char elsewhere[64];
    refused(MASS_POOL_E_FOREIGN, elsewhere);
    refused(MASS_POOL_E_FOREIGN, (void *)16);
    refused(MASS_POOL_E_FOREIGN, (void *)UINTPTR_MAX);
}

static void pointer_before_the_first_block(void) { refused(MASS_POOL_E_FOREIGN, a - 16); }

static void foreign_pools_block(void) {
    mass_pool_t *other = mass_pool_create(1 << 20);
    void *block = mass_pool_allocate(other, SIZE);
    refused(MASS_POOL_E_FOREIGN, block);
    EXPECT(mass_pool_free(other, block) == MASS_POOL_OK);
    mass_pool_destroy(other);
}

static void realloc_after_free(void) {
    freed(b);
    wrong_count++;
    EXPECT(mass_pool_reallocate(pool, b, 400) == NULL);
    EXPECT(mass_pool_last_error(pool) == MASS_POOL_E_DOUBLE_FREE);
}

static void free_after_reset(void) {
    mass_pool_reset(pool);
    refused(MASS_POOL_E_DOUBLE_FREE, b);
    a = b = c = guard = NULL;
}

/* The default build cannot see an overrun; its state must not suffer. */
static void overrun_by_one(void) {
    memset(a, 0x41, SIZE + 1);
    freed(a);
}

static void overrun_into_free_memory(void) {
    freed(b);
    memset(a, 0x41, SIZE + 24); /* the links of b and more */
    freed(a);
    damage_count++;
}

/* The guard pages: these two end in SIGSEGV in every build. */
static void run_below_the_pool(void) {
    volatile unsigned char *first = a;
    first[-1] = 0x41;
}

static void run_beyond_the_pool(void) {
    mass_pool_statistics_t now;
    mass_pool_statistics(pool, &now);
    volatile unsigned char *first = a;
    first[(now.capacity_bytes + 4095) / 4096 * 4096] = 0x41; /* rounded up to whole pages */
}

static void write_after_free_with(int byte) {
    unsigned char *d = mass_pool_allocate(pool, SIZE); /* a second block in the list of b */
    unsigned char *e = mass_pool_allocate(pool, SIZE);
    EXPECT(d != NULL && e != NULL);
    freed(d);
    freed(b);
    memset(b, byte, 16);
    EXPECT(mass_pool_check(pool) == MASS_POOL_E_DAMAGED);
    EXPECT(mass_pool_allocate(pool, SIZE) != NULL);
    EXPECT(mass_pool_allocate(pool, SIZE) != NULL);
    EXPECT(mass_pool_last_error(pool) == MASS_POOL_E_DAMAGED);
    damage_count++;
    freed(e);
}

static void write_after_free(void) { write_after_free_with(0x41); }

static void zeros_after_free(void) { write_after_free_with(0); }

/* No misuse: a hardened build must pass these too. */

static void sizes_that_overflow(void) {
    size_t sizes[] = {SIZE_MAX, SIZE_MAX - 15, ((size_t)1 << 63) + 8, (size_t)1 << 40};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        EXPECT(mass_pool_allocate(pool, sizes[i]) == NULL);
        EXPECT(mass_pool_last_error(pool) == MASS_POOL_E_SIZE);
        EXPECT(mass_pool_allocate_aligned(pool, 4096, sizes[i]) == NULL);
        EXPECT(mass_pool_reallocate(pool, a, sizes[i]) == NULL);
        EXPECT(a[0] == 1 && a[SIZE - 1] == 1);
    }
    EXPECT(mass_pool_allocate_aligned(pool, (size_t)1 << 63, SIZE) == NULL);
    EXPECT(mass_pool_last_error(pool) == MASS_POOL_E_SIZE);
}

static void alignments_that_are_none(void) {
    EXPECT(mass_pool_allocate_aligned(pool, 0, SIZE) == NULL);
    EXPECT(mass_pool_allocate_aligned(pool, 48, SIZE) == NULL);
    EXPECT(mass_pool_last_error(pool) == MASS_POOL_E_ALIGNMENT);
}

static void null_is_nothing(void) {
    freed(NULL);
    mass_pool_destroy(NULL);
    void *block = mass_pool_reallocate(pool, NULL, SIZE);
    EXPECT(block != NULL);
    EXPECT(mass_pool_reallocate(pool, block, 0) == block);
    freed(block);
}

static void pools_that_cannot_be(void) {
    static unsigned char memory[256];
    EXPECT(mass_pool_create(0) == NULL && mass_pool_create(MASS_POOL_BYTES_MIN - 1) == NULL);
    EXPECT(mass_pool_create(SIZE_MAX) == NULL);
    EXPECT(mass_pool_create((size_t)MASS_POOL_BYTES_MAX + 1) == NULL);
    EXPECT(mass_pool_create_over(NULL, 1 << 20) == NULL);
    EXPECT(mass_pool_create_over(memory, sizeof memory) == NULL);
    EXPECT(mass_pool_create_over(memory + 1, 3) == NULL);
}

/* Nobody else's bytes may change, whatever fills the pool after the misuse. */
static void expect_no_overlap(void) {
    enum { BLOCKS_MAX = 30000 };
    static unsigned char *blocks[BLOCKS_MAX];
    mass_pool_statistics_t now;
    int count = 0;
    while (count < BLOCKS_MAX && (blocks[count] = mass_pool_allocate(pool, 80)) != NULL) {
        memset(blocks[count], count & 255, 80);
        count++;
    }
    for (int i = 0; i < count; i++) {
        for (int k = 0; k < 80; k++) {
            EXPECT(blocks[i][k] == (i & 255));
        }
        freed(blocks[i]);
    }
    for (int k = 0; k < SIZE && guard != NULL; k++) {
        EXPECT(guard[k] == 4);
    }
    EXPECT(mass_pool_check(pool) == MASS_POOL_OK);
    mass_pool_statistics(pool, &now);
    EXPECT(now.wrong_free_count == wrong_count && now.damage_count == damage_count);
}

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {
    {"double_free", double_free},
    {"double_free_after_others", double_free_after_others},
    {"double_free_in_joined_memory", double_free_in_joined_memory},
    {"free_inside_reused_memory", free_inside_reused_memory},
    {"interior_pointer", interior_pointer},
    {"misaligned_pointer", misaligned_pointer},
    {"pointer_into_large_block", pointer_into_large_block},
    {"foreign_pointer", foreign_pointer},
    {"pointer_before_the_first_block", pointer_before_the_first_block},
    {"foreign_pools_block", foreign_pools_block},
    {"realloc_after_free", realloc_after_free},
    {"free_after_reset", free_after_reset},
    {"overrun_by_one", overrun_by_one},
    {"overrun_into_free_memory", overrun_into_free_memory},
    {"run_below_the_pool", run_below_the_pool},
    {"run_beyond_the_pool", run_beyond_the_pool},
    {"write_after_free", write_after_free},
    {"zeros_after_free", zeros_after_free},
    {"sizes_that_overflow", sizes_that_overflow},
    {"alignments_that_are_none", alignments_that_are_none},
    {"null_is_nothing", null_is_nothing},
    {"pools_that_cannot_be", pools_that_cannot_be},
};

int main(int argc, char **argv) {
    EXPECT(argc == 2);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (strcmp(cases[i].name, argv[1]) == 0) {
            pool = mass_pool_create(1 << 20);
            a = mass_pool_allocate(pool, SIZE);
            b = mass_pool_allocate(pool, SIZE);
            c = mass_pool_allocate(pool, SIZE);
            guard = mass_pool_allocate(pool, SIZE);
            memset(a, 1, SIZE);
            memset(b, 2, SIZE);
            memset(c, 3, SIZE);
            memset(guard, 4, SIZE);
            cases[i].run();
            expect_no_overlap();
            return 0;
        }
    }
    EXPECT(!"a case of this name");
    return 2;
}

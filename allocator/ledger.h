/* Ledger: how much memory of every node is set aside, as fixed records in one memory pool.
 *
 * Rule: the sum reserved on a node never grows beyond its capacity; a capacity set lower than that
 * sum only refuses what would add to it. Each node's sums are kept with every change,
 * so no call but the walks depends on how many reservations there are.
 *
 * A reservation is named by a handle: the number of its record and the record's generation, which
 * changes with every release; a handle used twice is caught. Every call is atomic under the
 * ledger's own lock and safe from any thread. All memory comes from the pool: the columns at
 * create, records in blocks of 256 as they are needed; blocks are kept for later records.
 *
 * The declarations between the cffi marks are read by build.py: plain C only, no conditionals.
 */
#ifndef MASS_LEDGER_H
#define MASS_LEDGER_H

#include <stddef.h>
#include <stdint.h>

#include "memory_allocator.h"

/* cffi: begin */

#define MASS_LEDGER_BLOCK_RECORDS 256
#define MASS_LEDGER_NODES_MAX 1048576
#define MASS_LEDGER_RESERVATIONS_MAX 16777216
#define MASS_LEDGER_BYTES_MAX 9007199254740992 /* 2^53: exact in a double as well */

enum mass_ledger_error {
    MASS_LEDGER_OK = 0,
    MASS_LEDGER_E_EXHAUSTED = -1,  /* the pool has no room for more records */
    MASS_LEDGER_E_FULL = -2,       /* reservations_max records are in use */
    MASS_LEDGER_E_NO_ROOM = -3,    /* the node has less free than asked */
    MASS_LEDGER_E_NODE = -4,       /* slot out of bounds, or no capacity was set for it */
    MASS_LEDGER_E_NODE_BUSY = -5,  /* the node still has reservations */
    MASS_LEDGER_E_STALE = -6,      /* the handle's reservation was released, or never was */
    MASS_LEDGER_E_ARGUMENT = -7    /* bytes outside 0..BYTES_MAX, or a sum that would overflow */
};

enum mass_ledger_column {
    MASS_LEDGER_CAPACITY = 0,
    MASS_LEDGER_RESERVED = 1, /* sum of reserved */
    MASS_LEDGER_CHARGED = 2,  /* sum of max(reserved, used) */
    MASS_LEDGER_USED = 3,     /* sum of used */
    MASS_LEDGER_COUNT = 4     /* reservations */
};

typedef struct mass_ledger mass_ledger_t;

typedef struct {
    int64_t handle;
    int64_t task_id;
    int64_t reserved_bytes;
    int64_t used_bytes;
    int32_t attempt;
    int32_t slot;
} mass_ledger_entry_t;

/* Returns what the pool will count for a ledger with reservations_max reservations, or 0 if a
 * maximum is out of bounds. */
size_t mass_ledger_size(uint32_t nodes_max, uint32_t reservations_max);

/* Makes a ledger without nodes. Returns NULL if the pool has no room or a maximum is out of bounds
 * (1..NODES_MAX, 1..RESERVATIONS_MAX). */
mass_ledger_t *mass_ledger_create(mass_pool_t *pool, uint32_t nodes_max,
                                  uint32_t reservations_max);

/* Frees every block of the ledger; columns read in place end here. NULL is ignored. */
void mass_ledger_destroy(mass_ledger_t *ledger);

/* Sets what a node can give, for a new node or a known one. E_NODE (slot outside
 * 0..nodes_max-1), E_ARGUMENT. */
int mass_ledger_set_node(mass_ledger_t *ledger, int32_t slot, int64_t capacity_bytes);

/* Forgets a node. E_NODE, E_NODE_BUSY. */
int mass_ledger_clear_node(mass_ledger_t *ledger, int32_t slot);

/* Sets bytes aside and returns a handle (> 0), or E_ARGUMENT, E_NODE, E_NO_ROOM, E_FULL,
 * E_EXHAUSTED. */
int64_t mass_ledger_reserve(mass_ledger_t *ledger, int32_t slot, int64_t bytes, int64_t task_id,
                            int32_t attempt);

/* Changes what is set aside; less always succeeds. E_ARGUMENT, E_STALE, E_NO_ROOM. */
int mass_ledger_resize(mass_ledger_t *ledger, int64_t handle, int64_t bytes);

/* Sets what the reservation's owner was measured to use. E_ARGUMENT, E_STALE. */
int mass_ledger_measure(mass_ledger_t *ledger, int64_t handle, int64_t used_bytes);

/* Gives a reservation back. E_STALE. */
int mass_ledger_release(mass_ledger_t *ledger, int64_t handle);

/* Writes the reservation into `out`. E_STALE. */
int mass_ledger_read(mass_ledger_t *ledger, int64_t handle, mass_ledger_entry_t *out);

/* Writes at most `length` reservations of one node (newest first), or with slot -1 of all nodes,
 * and returns how many there are. 0 for a slot out of bounds. Linear in that number. */
size_t mass_ledger_walk(mass_ledger_t *ledger, int32_t slot, mass_ledger_entry_t *out,
                        size_t length);

/* A column over all slots (nodes_max long), 0 for a slot without a node. It never moves. */
const int64_t *mass_ledger_column(mass_ledger_t *ledger, int column);

/* Returns what the pool counts for all blocks of the ledger. */
size_t mass_ledger_bytes_used(mass_ledger_t *ledger);

/* Recomputes every sum from the records and compares. Returns 1 when all agree, else 0. Linear. */
int mass_ledger_check(mass_ledger_t *ledger);

/* cffi: end */

#endif

/* See ledger.h. One block holds the struct, the directory of record blocks, and the columns. The
 * live records of a node form a doubly linked list, the free records a single one; links are
 * record numbers. */
#define _GNU_SOURCE
#include "ledger.h"

#include <pthread.h>
#include <string.h>

#define NONE (-1)
#define ABSENT (-2) /* first[slot] of a slot without a node */
#define COLUMNS 5
#define GENERATION_MAX INT32_MAX /* so that a handle stays positive */

typedef struct {
    int64_t task_id;
    int64_t reserved_bytes;
    int64_t used_bytes;
    int32_t attempt;
    int32_t slot; /* NONE while the record is free */
    uint32_t generation;
    int32_t next;
    int32_t previous;
} record_t;

struct mass_ledger {
    pthread_mutex_t mutex;
    mass_pool_t *pool;
    size_t bytes_used;
    uint32_t nodes_max;
    uint32_t reservations_max;
    uint32_t record_count; /* records laid out, live or free */
    uint32_t live_count;
    int32_t free_record;
    int64_t *columns[COLUMNS];
    int32_t *first; /* of each slot: its newest record, NONE or ABSENT */
    record_t *blocks[];
};

static record_t *record_at(const mass_ledger_t *ledger, int32_t number)
{
    return &ledger->blocks[number / MASS_LEDGER_BLOCK_RECORDS][number % MASS_LEDGER_BLOCK_RECORDS];
}

static int64_t handle_of(const record_t *record, int32_t number)
{
    return (int64_t)record->generation << 32 | number;
}

/* Returns the record number of a live reservation, or NONE. */
static int32_t number_of(const mass_ledger_t *ledger, int64_t handle)
{
    const int64_t number = handle & UINT32_MAX;
    if (handle <= 0 || number >= (int64_t)ledger->record_count) {
        return NONE;
    }
    const record_t *record = record_at(ledger, (int32_t)number);
    const int same = record->slot != NONE && record->generation == (uint32_t)(handle >> 32);
    return same ? (int32_t)number : NONE;
}

static int64_t charge_of(const record_t *record)
{
    return record->reserved_bytes > record->used_bytes ? record->reserved_bytes
                                                       : record->used_bytes;
}

static int is_node(const mass_ledger_t *ledger, int32_t slot)
{
    return slot >= 0 && (uint32_t)slot < ledger->nodes_max && ledger->first[slot] != ABSENT;
}

static int is_size(int64_t bytes)
{
    return bytes >= 0 && bytes <= MASS_LEDGER_BYTES_MAX;
}

static int64_t *sum_of(const mass_ledger_t *ledger, int column, int32_t slot)
{
    return &ledger->columns[column][slot];
}

/* --- life --------------------------------------------------------------------------------- */

static int are_bounds(uint32_t nodes_max, uint32_t reservations_max)
{
    return nodes_max >= 1 && nodes_max <= MASS_LEDGER_NODES_MAX && reservations_max >= 1 &&
           reservations_max <= MASS_LEDGER_RESERVATIONS_MAX;
}

static size_t blocks_for(uint32_t reservations)
{
    return (reservations + MASS_LEDGER_BLOCK_RECORDS - 1) / MASS_LEDGER_BLOCK_RECORDS;
}

static size_t fixed_size(uint32_t nodes_max, uint32_t reservations_max)
{
    return sizeof(mass_ledger_t) + blocks_for(reservations_max) * sizeof(record_t *) +
           nodes_max * (COLUMNS * sizeof(int64_t) + sizeof(int32_t));
}

size_t mass_ledger_size(uint32_t nodes_max, uint32_t reservations_max)
{
    if (!are_bounds(nodes_max, reservations_max)) {
        return 0;
    }
    const size_t fixed = fixed_size(nodes_max, reservations_max);
    /* Whole granules, as the pool counts; a block of records is a whole number of them. */
    return (fixed + MASS_POOL_ALIGNMENT - 1) / MASS_POOL_ALIGNMENT * MASS_POOL_ALIGNMENT +
           blocks_for(reservations_max) * MASS_LEDGER_BLOCK_RECORDS * sizeof(record_t);
}

mass_ledger_t *mass_ledger_create(mass_pool_t *pool, uint32_t nodes_max,
                                  uint32_t reservations_max)
{
    if (!are_bounds(nodes_max, reservations_max)) {
        return NULL;
    }
    const size_t blocks_max = blocks_for(reservations_max);
    const size_t size = fixed_size(nodes_max, reservations_max);
    mass_ledger_t *ledger = mass_pool_allocate(pool, size);
    if (ledger == NULL) {
        return NULL;
    }
    memset(ledger, 0, size);
    if (pthread_mutex_init(&ledger->mutex, NULL) != 0) {
        mass_pool_free(pool, ledger);
        return NULL;
    }
    ledger->pool = pool;
    ledger->bytes_used = mass_pool_size_of(pool, ledger);
    ledger->nodes_max = nodes_max;
    ledger->reservations_max = reservations_max;
    ledger->free_record = NONE;
    ledger->columns[0] = (int64_t *)(ledger->blocks + blocks_max);
    for (int column = 1; column < COLUMNS; column++) {
        ledger->columns[column] = ledger->columns[column - 1] + nodes_max;
    }
    ledger->first = (int32_t *)(ledger->columns[COLUMNS - 1] + nodes_max);
    for (uint32_t slot = 0; slot < nodes_max; slot++) {
        ledger->first[slot] = ABSENT;
    }
    return ledger;
}

void mass_ledger_destroy(mass_ledger_t *ledger)
{
    if (ledger == NULL) {
        return;
    }
    for (uint32_t i = 0; i < ledger->record_count; i += MASS_LEDGER_BLOCK_RECORDS) {
        mass_pool_free(ledger->pool, ledger->blocks[i / MASS_LEDGER_BLOCK_RECORDS]);
    }
    pthread_mutex_destroy(&ledger->mutex);
    mass_pool_free(ledger->pool, ledger);
}

/* --- nodes -------------------------------------------------------------------------------- */

static int set_node(mass_ledger_t *ledger, int32_t slot, int64_t capacity_bytes)
{
    if (slot < 0 || (uint32_t)slot >= ledger->nodes_max) {
        return MASS_LEDGER_E_NODE;
    }
    if (!is_size(capacity_bytes)) {
        return MASS_LEDGER_E_ARGUMENT;
    }
    if (ledger->first[slot] == ABSENT) {
        ledger->first[slot] = NONE;
    }
    *sum_of(ledger, MASS_LEDGER_CAPACITY, slot) = capacity_bytes;
    return MASS_LEDGER_OK;
}

int mass_ledger_set_node(mass_ledger_t *ledger, int32_t slot, int64_t capacity_bytes)
{
    pthread_mutex_lock(&ledger->mutex);
    const int code = set_node(ledger, slot, capacity_bytes);
    pthread_mutex_unlock(&ledger->mutex);
    return code;
}

static int clear_node(mass_ledger_t *ledger, int32_t slot)
{
    if (!is_node(ledger, slot)) {
        return MASS_LEDGER_E_NODE;
    }
    if (ledger->first[slot] != NONE) {
        return MASS_LEDGER_E_NODE_BUSY;
    }
    ledger->first[slot] = ABSENT;
    *sum_of(ledger, MASS_LEDGER_CAPACITY, slot) = 0;
    return MASS_LEDGER_OK;
}

int mass_ledger_clear_node(mass_ledger_t *ledger, int32_t slot)
{
    pthread_mutex_lock(&ledger->mutex);
    const int code = clear_node(ledger, slot);
    pthread_mutex_unlock(&ledger->mutex);
    return code;
}

/* --- reservations ------------------------------------------------------------------------- */

/* Lays out one more block of records; 0 when the pool has no room. */
static int block_add(mass_ledger_t *ledger)
{
    record_t *block =
        mass_pool_allocate(ledger->pool, MASS_LEDGER_BLOCK_RECORDS * sizeof(record_t));
    if (block == NULL) {
        return 0;
    }
    memset(block, 0, MASS_LEDGER_BLOCK_RECORDS * sizeof(record_t));
    ledger->bytes_used += mass_pool_size_of(ledger->pool, block);
    ledger->blocks[ledger->record_count / MASS_LEDGER_BLOCK_RECORDS] = block;
    for (int32_t i = MASS_LEDGER_BLOCK_RECORDS - 1; i >= 0; i--) {
        block[i].slot = NONE;
        block[i].generation = 1;
        block[i].next = ledger->free_record;
        ledger->free_record = (int32_t)ledger->record_count + i;
    }
    ledger->record_count += MASS_LEDGER_BLOCK_RECORDS;
    return 1;
}

/* Changes a record's two sizes and the node's sums with them; 0 when the charged or used sum would
 * overflow (the reserved sum cannot: it is bounded by the capacity or by itself). */
static int change(mass_ledger_t *ledger, record_t *record, int64_t reserved, int64_t used)
{
    int64_t *charged_sum = sum_of(ledger, MASS_LEDGER_CHARGED, record->slot);
    int64_t *used_sum = sum_of(ledger, MASS_LEDGER_USED, record->slot);
    const int64_t charge = reserved > used ? reserved : used;
    int64_t charged_after = 0;
    int64_t used_after = 0;
    if (__builtin_add_overflow(*charged_sum, charge - charge_of(record), &charged_after) ||
        __builtin_add_overflow(*used_sum, used - record->used_bytes, &used_after)) {
        return 0;
    }
    *sum_of(ledger, MASS_LEDGER_RESERVED, record->slot) += reserved - record->reserved_bytes;
    *charged_sum = charged_after;
    *used_sum = used_after;
    record->reserved_bytes = reserved;
    record->used_bytes = used;
    return 1;
}

static int has_room(const mass_ledger_t *ledger, int32_t slot, int64_t more_bytes)
{
    return more_bytes <= *sum_of(ledger, MASS_LEDGER_CAPACITY, slot) -
                             *sum_of(ledger, MASS_LEDGER_RESERVED, slot);
}

static int64_t reserve(mass_ledger_t *ledger, int32_t slot, int64_t bytes, int64_t task_id,
                       int32_t attempt)
{
    if (!is_size(bytes)) {
        return MASS_LEDGER_E_ARGUMENT;
    }
    if (!is_node(ledger, slot)) {
        return MASS_LEDGER_E_NODE;
    }
    if (!has_room(ledger, slot, bytes)) {
        return MASS_LEDGER_E_NO_ROOM;
    }
    if (ledger->live_count == ledger->reservations_max) {
        return MASS_LEDGER_E_FULL;
    }
    if (ledger->free_record == NONE && !block_add(ledger)) {
        return MASS_LEDGER_E_EXHAUSTED;
    }
    const int32_t number = ledger->free_record;
    record_t *record = record_at(ledger, number);
    const int32_t next_free = record->next;
    record->slot = slot; /* the sizes of a free record are 0 */
    if (!change(ledger, record, bytes, 0)) {
        record->slot = NONE;
        return MASS_LEDGER_E_ARGUMENT;
    }
    ledger->free_record = next_free;
    record->task_id = task_id;
    record->attempt = attempt;
    record->previous = NONE;
    record->next = ledger->first[slot];
    if (record->next != NONE) {
        record_at(ledger, record->next)->previous = number;
    }
    ledger->first[slot] = number;
    ledger->live_count++;
    ++*sum_of(ledger, MASS_LEDGER_COUNT, slot);
    return handle_of(record, number);
}

int64_t mass_ledger_reserve(mass_ledger_t *ledger, int32_t slot, int64_t bytes, int64_t task_id,
                            int32_t attempt)
{
    pthread_mutex_lock(&ledger->mutex);
    const int64_t handle = reserve(ledger, slot, bytes, task_id, attempt);
    pthread_mutex_unlock(&ledger->mutex);
    return handle;
}

static int resize(mass_ledger_t *ledger, int64_t handle, int64_t bytes)
{
    if (!is_size(bytes)) {
        return MASS_LEDGER_E_ARGUMENT;
    }
    const int32_t number = number_of(ledger, handle);
    if (number == NONE) {
        return MASS_LEDGER_E_STALE;
    }
    record_t *record = record_at(ledger, number);
    const int64_t more_bytes = bytes - record->reserved_bytes;
    if (more_bytes > 0 && !has_room(ledger, record->slot, more_bytes)) {
        return MASS_LEDGER_E_NO_ROOM;
    }
    const int changed = change(ledger, record, bytes, record->used_bytes);
    return changed ? MASS_LEDGER_OK : MASS_LEDGER_E_ARGUMENT;
}

int mass_ledger_resize(mass_ledger_t *ledger, int64_t handle, int64_t bytes)
{
    pthread_mutex_lock(&ledger->mutex);
    const int code = resize(ledger, handle, bytes);
    pthread_mutex_unlock(&ledger->mutex);
    return code;
}

static int measure(mass_ledger_t *ledger, int64_t handle, int64_t used_bytes)
{
    if (!is_size(used_bytes)) {
        return MASS_LEDGER_E_ARGUMENT;
    }
    const int32_t number = number_of(ledger, handle);
    if (number == NONE) {
        return MASS_LEDGER_E_STALE;
    }
    record_t *record = record_at(ledger, number);
    const int changed = change(ledger, record, record->reserved_bytes, used_bytes);
    return changed ? MASS_LEDGER_OK : MASS_LEDGER_E_ARGUMENT;
}

int mass_ledger_measure(mass_ledger_t *ledger, int64_t handle, int64_t used_bytes)
{
    pthread_mutex_lock(&ledger->mutex);
    const int code = measure(ledger, handle, used_bytes);
    pthread_mutex_unlock(&ledger->mutex);
    return code;
}

static int release(mass_ledger_t *ledger, int64_t handle)
{
    const int32_t number = number_of(ledger, handle);
    if (number == NONE) {
        return MASS_LEDGER_E_STALE;
    }
    record_t *record = record_at(ledger, number);
    change(ledger, record, 0, 0); /* sums of sizes that are not negative only fall: no overflow */
    --*sum_of(ledger, MASS_LEDGER_COUNT, record->slot);
    if (record->previous != NONE) {
        record_at(ledger, record->previous)->next = record->next;
    } else {
        ledger->first[record->slot] = record->next;
    }
    if (record->next != NONE) {
        record_at(ledger, record->next)->previous = record->previous;
    }
    record->slot = NONE;
    record->generation = record->generation == GENERATION_MAX ? 1 : record->generation + 1;
    record->next = ledger->free_record;
    ledger->free_record = number;
    ledger->live_count--;
    return MASS_LEDGER_OK;
}

int mass_ledger_release(mass_ledger_t *ledger, int64_t handle)
{
    pthread_mutex_lock(&ledger->mutex);
    const int code = release(ledger, handle);
    pthread_mutex_unlock(&ledger->mutex);
    return code;
}

/* --- reading ------------------------------------------------------------------------------ */

static mass_ledger_entry_t entry_of(const mass_ledger_t *ledger, int32_t number)
{
    const record_t *record = record_at(ledger, number);
    const mass_ledger_entry_t entry = {
        .handle = handle_of(record, number),
        .task_id = record->task_id,
        .reserved_bytes = record->reserved_bytes,
        .used_bytes = record->used_bytes,
        .attempt = record->attempt,
        .slot = record->slot,
    };
    return entry;
}

int mass_ledger_read(mass_ledger_t *ledger, int64_t handle, mass_ledger_entry_t *out)
{
    pthread_mutex_lock(&ledger->mutex);
    const int32_t number = number_of(ledger, handle);
    if (number != NONE) {
        *out = entry_of(ledger, number);
    }
    pthread_mutex_unlock(&ledger->mutex);
    return number != NONE ? MASS_LEDGER_OK : MASS_LEDGER_E_STALE;
}

static size_t walk_node(const mass_ledger_t *ledger, int32_t slot, mass_ledger_entry_t *out,
                        size_t length)
{
    size_t found = 0;
    for (int32_t number = ledger->first[slot]; number >= 0; found++) {
        if (found < length) {
            out[found] = entry_of(ledger, number);
        }
        number = record_at(ledger, number)->next;
    }
    return found;
}

size_t mass_ledger_walk(mass_ledger_t *ledger, int32_t slot, mass_ledger_entry_t *out,
                        size_t length)
{
    size_t found = 0;
    pthread_mutex_lock(&ledger->mutex);
    if (slot == -1) {
        for (int32_t node = 0; node < (int32_t)ledger->nodes_max; node++) {
            const size_t written = found < length ? found : length;
            found += walk_node(ledger, node, out + written, length - written);
        }
    } else if (is_node(ledger, slot)) {
        found = walk_node(ledger, slot, out, length);
    }
    pthread_mutex_unlock(&ledger->mutex);
    return found;
}

const int64_t *mass_ledger_column(mass_ledger_t *ledger, int column)
{
    return column >= 0 && column < COLUMNS ? ledger->columns[column] : NULL;
}

size_t mass_ledger_bytes_used(mass_ledger_t *ledger)
{
    pthread_mutex_lock(&ledger->mutex);
    const size_t bytes = ledger->bytes_used;
    pthread_mutex_unlock(&ledger->mutex);
    return bytes;
}

/* Compares one node's columns with its records; returns their number, or -1. */
static int64_t check_node(const mass_ledger_t *ledger, int32_t slot)
{
    int64_t sums[COLUMNS] = {*sum_of(ledger, MASS_LEDGER_CAPACITY, slot), 0, 0, 0, 0};
    int32_t previous = NONE;
    for (int32_t number = ledger->first[slot]; number >= 0;) {
        const record_t *record = record_at(ledger, number);
        if (record->slot != slot || record->previous != previous || record->generation == 0 ||
            !is_size(record->reserved_bytes) || !is_size(record->used_bytes) ||
            ++sums[MASS_LEDGER_COUNT] > (int64_t)ledger->live_count) {
            return -1;
        }
        sums[MASS_LEDGER_RESERVED] += record->reserved_bytes;
        sums[MASS_LEDGER_CHARGED] += charge_of(record);
        sums[MASS_LEDGER_USED] += record->used_bytes;
        previous = number;
        number = record->next;
    }
    for (int column = 0; column < COLUMNS; column++) {
        if (*sum_of(ledger, column, slot) != sums[column]) {
            return -1;
        }
    }
    const int absent_with_capacity =
        ledger->first[slot] == ABSENT && sums[MASS_LEDGER_CAPACITY] != 0;
    return absent_with_capacity ? -1 : sums[MASS_LEDGER_COUNT];
}

static int check(const mass_ledger_t *ledger)
{
    int64_t live = 0;
    for (int32_t slot = 0; slot < (int32_t)ledger->nodes_max; slot++) {
        const int64_t count = check_node(ledger, slot);
        if (count < 0) {
            return 0;
        }
        live += count;
    }
    int64_t unused = 0;
    for (int32_t number = ledger->free_record; number != NONE; unused++) {
        if (number < 0 || (uint32_t)number >= ledger->record_count ||
            record_at(ledger, number)->slot != NONE || charge_of(record_at(ledger, number)) != 0 ||
            unused >= (int64_t)ledger->record_count) {
            return 0;
        }
        number = record_at(ledger, number)->next;
    }
    size_t bytes = mass_pool_size_of(ledger->pool, ledger);
    for (uint32_t i = 0; i < ledger->record_count; i += MASS_LEDGER_BLOCK_RECORDS) {
        bytes += mass_pool_size_of(ledger->pool, ledger->blocks[i / MASS_LEDGER_BLOCK_RECORDS]);
    }
    return live == (int64_t)ledger->live_count &&
           live + unused == (int64_t)ledger->record_count &&
           ledger->live_count <= ledger->reservations_max && bytes == ledger->bytes_used;
}

int mass_ledger_check(mass_ledger_t *ledger)
{
    pthread_mutex_lock(&ledger->mutex);
    const int sound = check(ledger);
    pthread_mutex_unlock(&ledger->mutex);
    return sound;
}

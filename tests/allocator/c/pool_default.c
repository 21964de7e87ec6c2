/* Goal: the default pool is made once however many threads come first, and a child of fork may use
 * it whatever the other threads were doing at that moment.
 * Method: threads meet at a barrier and allocate; then they go on while the main thread forks again
 * and again, and each child allocates, frees and checks within its alarm.
 */
#include "expect.h"
#include "memory_allocator.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 4, FORKS = 60, CHILD_SECONDS_MAX = 10 };

static pthread_barrier_t barrier;
static atomic_int stop;

static void *work(void *argument) {
    mass_pool_t **seen = argument;
    pthread_barrier_wait(&barrier);
    EXPECT(allocate_memory(100) != NULL);
    *seen = mass_pool_default();
    while (!atomic_load(&stop)) {
        void *block = reallocate_memory(allocate_memory(100), 3000);
        EXPECT(block != NULL);
        free_memory(block);
    }
    return NULL;
}

static int use_in_child(void) {
    alarm(CHILD_SECONDS_MAX);
    void *block = allocate_memory(1000);
    if (block == NULL || mass_pool_check(mass_pool_default()) != MASS_POOL_OK) {
        return 1;
    }
    free_memory(block);
    return mass_pool_last_error(mass_pool_default());
}

int main(void) {
    pthread_t threads[THREADS];
    mass_pool_t *seen[THREADS];
    mass_pool_statistics_t now;
    EXPECT(setenv("POOL_BYTES", "1048576", 1) == 0);
    EXPECT(pthread_barrier_init(&barrier, NULL, THREADS) == 0);
    for (int i = 0; i < THREADS; i++) {
        EXPECT(pthread_create(&threads[i], NULL, work, &seen[i]) == 0);
    }
    for (int i = 0; i < FORKS; i++) {
        int status;
        pid_t child = fork();
        EXPECT(child >= 0);
        if (child == 0) {
            _exit(use_in_child());
        }
        EXPECT(waitpid(child, &status, 0) == child && status == 0);
    }
    atomic_store(&stop, 1);
    for (int i = 0; i < THREADS; i++) {
        EXPECT(pthread_join(threads[i], NULL) == 0);
        EXPECT(seen[i] == mass_pool_default());
    }
    mass_pool_statistics(mass_pool_default(), &now);
    EXPECT(now.live_count == THREADS && now.failure_count == 0 && now.wrong_free_count == 0);
    return 0;
}

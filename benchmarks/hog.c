/* A task whose memory follows a given profile, for the memory benchmarks.
 *
 *     hog LOG NAME SECONDS:MIB [SECONDS:MIB ...]
 *
 * Each step moves resident memory in a straight line from where it was to MIB within SECONDS of the
 * task's own time: pages are really touched, and really given back. Then it ends with 0. It appends
 * "begin NAME PID T" and "end NAME PID T" (T: seconds of the monotonic clock) to LOG, each in one
 * write, so a begin without an end is an attempt that was killed, whatever anyone says. Own time
 * stands still while the task is stopped: a gap between two ticks counts as one tick at most.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define TICK_SECONDS 0.02
#define GAP_SECONDS_MAX 0.25 /* longer than a fault storm's delay, shorter than any useful pause */
#define PAGE ((size_t)4096)
#define MIB 1048576.0
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

static double now_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void tell(const char *path, const char *what, const char *name)
{
    char line[256];
    const int length =
        snprintf(line, sizeof line, "%s %s %d %.3f\n", what, name, (int)getpid(), now_seconds());
    const int file = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0 || write(file, line, (size_t)length) != length) {
        _exit(3);
    }
    close(file);
}

/* Make exactly `wanted` bytes of the block resident. */
static void resize(char *block, size_t *resident, size_t wanted)
{
    if (wanted < *resident) {
        madvise(block + wanted, *resident - wanted, MADV_DONTNEED);
    } else if (wanted > *resident &&
               madvise(block + *resident, wanted - *resident, MADV_POPULATE_WRITE) != 0) {
        for (size_t at = *resident; at < wanted; at += PAGE) { /* an older kernel */
            block[at] = 1;
        }
    }
    *resident = wanted;
}

int main(int count, char **arguments)
{
    if (count < 4) {
        fprintf(stderr, "usage: hog LOG NAME SECONDS:MIB [SECONDS:MIB ...]\n");
        return 2;
    }
    double highest_mib = 0, seconds, target_mib;
    for (int step = 3; step < count; step++) {
        if (sscanf(arguments[step], "%lf:%lf", &seconds, &target_mib) != 2) {
            fprintf(stderr, "hog: '%s' is not SECONDS:MIB\n", arguments[step]);
            return 2;
        }
        highest_mib = target_mib > highest_mib ? target_mib : highest_mib;
    }
    const size_t size = ((size_t)(highest_mib * MIB) / PAGE + 1) * PAGE;
    char *block = mmap(NULL, size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == MAP_FAILED) {
        perror("hog");
        return 4;
    }
    madvise(block, size, MADV_NOHUGEPAGE);
    tell(arguments[1], "begin", arguments[2]);
    size_t resident = 0;
    double level_mib = 0;
    for (int step = 3; step < count; step++) {
        sscanf(arguments[step], "%lf:%lf", &seconds, &target_mib);
        double own = 0, before = now_seconds();
        while (own < seconds) {
            const double left = seconds - own;
            const double pause = left < TICK_SECONDS ? left : TICK_SECONDS;
            const struct timespec nap = {0, (long)(pause * 1e9)};
            nanosleep(&nap, NULL);
            const double now = now_seconds(), gap = now - before;
            before = now;
            own += gap < GAP_SECONDS_MAX ? gap : TICK_SECONDS;
            const double share = own < seconds ? own / seconds : 1;
            const double wanted_mib = level_mib + (target_mib - level_mib) * share;
            resize(block, &resident, (size_t)(wanted_mib * MIB) / PAGE * PAGE);
        }
        level_mib = target_mib;
    }
    tell(arguments[1], "end", arguments[2]);
    return 0;
}

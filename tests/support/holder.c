/*
 * Holds memory for tests: as many more MiB as each line of its input says, each page touched, and
 * answers with the number. "up" first. Written in C because it starts in a millisecond, also in a
 * virtual machine that emulates its processor.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(void)
{
    char line[32];
    puts("up");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        const unsigned long mib = strtoul(line, NULL, 10);
        char *block = malloc(mib << 20);
        if (block == NULL) {
            return 1;
        }
        memset(block, 'x', mib << 20); /* held on purpose until the end */
        printf("%lu\n", mib);
        fflush(stdout);
    }
    return 0;
}

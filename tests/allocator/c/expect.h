/* The C tests' one assertion: it stays when NDEBUG is set, and says where it failed. */
#ifndef EXPECT_H
#define EXPECT_H

#include <stdio.h>
#include <stdlib.h>

#define EXPECT(condition)                                                                        \
    do {                                                                                         \
        if (!(condition)) {                                                                      \
            fprintf(stderr, "%s:%d: expected %s\n", __FILE__, __LINE__, #condition);            \
            exit(1);                                                                             \
        }                                                                                        \
    } while (0)

#endif

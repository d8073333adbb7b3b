/* An MPI library that writes down every message which a rank sends, and leaves all else to the library that it is linked with.
 *
 *   cc -O2 -shared -fPIC -o libmpi_counting.so counting_mpi.c PREFIX/lib/libmpi.so.12 -Wl,-rpath,PREFIX/lib
 *   LLAVA_MPI_LIBRARY=…/libmpi_counting.so COUNTING_MPI=FOLDER mpiexec -n 4 train …
 *
 * FOLDER/RANK has a line "RECEIVER BYTES" for each message. Handles pass through as wide as a pointer, which is Open MPI's, and of
 * which MPICH reads the low half; the values are floats. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int PMPI_Isend(const void *, int, uintptr_t, int, int, uintptr_t, uintptr_t *);
int PMPI_Comm_rank(uintptr_t, int *);

int MPI_Isend(const void *values, int count, uintptr_t type, int receiver, int tag, uintptr_t communicator, uintptr_t *request) {
    static FILE *log;
    const char *folder = getenv("COUNTING_MPI");
    if (!log && folder) {
        char path[4096];
        int rank = 0;
        PMPI_Comm_rank(communicator, &rank);
        snprintf(path, sizeof path, "%s/%d", folder, rank);
        log = fopen(path, "w");
        if (!log) {
            perror(path);
            abort();
        }
        setvbuf(log, NULL, _IOLBF, 0);
    }
    if (log)
        fprintf(log, "%d %zu\n", receiver, count * sizeof(float));
    return PMPI_Isend(values, count, type, receiver, tag, communicator, request);
}

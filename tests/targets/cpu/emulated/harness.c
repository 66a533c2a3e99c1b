/* Runs steps of a driver on behalf of a test on another machine: the memory is a file that both map.
 *
 * Reads requests from stdin: a header, launches, then pointers, all places as offsets into the file.
 * Answers each with one byte on stdout once the step is done.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

typedef struct {
    int32_t kernel, rows, first_pointer, unused;
    int64_t ahead, ahead_bytes;
} launch_t;
typedef struct pool pool_t;
pool_t *tokc_open(int32_t threads);
void tokc_step(pool_t *pool, const launch_t *launches, int32_t count, void *const *pointers, const int32_t *rows,
               int64_t *nanoseconds);

enum { MOST_THREADS = 64 };
typedef struct {
    int32_t threads, launches, pointers, rows[3]; /* as many as ROW_COUNTS has */
} header_t;

static void *receive(size_t size) {
    void *data = malloc(size + 1);
    if (data == NULL || fread(data, 1, size, stdin) != size) exit(3);
    return data;
}

int main(int argc, char **argv) {
    static pool_t *pools[MOST_THREADS + 1];
    struct stat status;
    int file = argc == 2 ? open(argv[1], O_RDWR) : -1;
    if (file < 0 || fstat(file, &status) != 0) return 1;
    char *memory = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) return 2;
    header_t header;
    while (fread(&header, sizeof header, 1, stdin) == 1) {
        launch_t *launches = receive((size_t)header.launches * sizeof *launches);
        int64_t *places = receive((size_t)header.pointers * sizeof *places);
        void **pointers = malloc((size_t)header.pointers * sizeof *pointers + 1);
        for (int32_t i = 0; i < header.pointers; i++) pointers[i] = memory + places[i];
        for (int32_t i = 0; i < header.launches; i++)
            if (launches[i].ahead_bytes > 0) launches[i].ahead += (int64_t)(intptr_t)memory;
        if (header.threads < 1 || header.threads > MOST_THREADS) return 4;
        pool_t **pool = &pools[header.threads];
        if (*pool == NULL && (*pool = tokc_open(header.threads)) == NULL) return 5;
        tokc_step(*pool, launches, header.launches, pointers, header.rows, NULL);
        free(launches);
        free(places);
        free(pointers);
        putchar('.');
        fflush(stdout);
    }
    return 0;
}

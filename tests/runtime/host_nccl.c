/* Takes the place of libnccl.so.2: logs every call as the real bindings make it, and moves nothing.
 * HOST_NCCL_LOG is the file; HOST_NCCL_FAIL the name of a call that fails. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int said(const char *name, const char *format, ...) {
    const char *path = getenv("HOST_NCCL_LOG"), *fail = getenv("HOST_NCCL_FAIL");
    FILE *log = path ? fopen(path, "a") : NULL;
    if (log) {
        va_list rest;
        va_start(rest, format);
        fprintf(log, "%s ", name);
        vfprintf(log, format, rest);
        fprintf(log, "\n");
        va_end(rest);
        fclose(log);
    }
    return fail && !strcmp(fail, name) ? 1 : 0; /* ncclUnhandledCudaError */
}

int ncclGetVersion(int *version) { *version = 23000; return 0; }
const char *ncclGetErrorString(int result) { return result ? "unhandled cuda error" : "no error"; }
const char *ncclGetLastError(void *comm) { (void)comm; return "none"; }

int ncclCommInitAll(void **comms, int count, const int *devices) {
    int result = said("init", "%d", count);
    for (int rank = 0; rank < count && !result; rank++) {
        comms[rank] = (void *)(size_t)(0x100 + rank);
        said("device", "%d", devices[rank]);
    }
    return result;
}

int ncclAllGather(const void *from, void *to, size_t count, int type, void *comm, void *stream) {
    return said("all_gather", "%zu %zu %zu %d %zu %zu", (size_t)from, (size_t)to, count, type, (size_t)comm,
                (size_t)stream);
}

int ncclSend(const void *from, size_t count, int type, int peer, void *comm, void *stream) {
    return said("send", "%zu %zu %d %d %zu %zu", (size_t)from, count, type, peer, (size_t)comm,
                (size_t)stream);
}

int ncclRecv(void *to, size_t count, int type, int peer, void *comm, void *stream) {
    return said("recv", "%zu %zu %d %d %zu %zu", (size_t)to, count, type, peer, (size_t)comm, (size_t)stream);
}

int ncclGroupStart(void) { return said("group", "start"); }
int ncclGroupEnd(void) { return said("group", "end"); }
int ncclCommDestroy(void *comm) { return said("destroy", "%zu", (size_t)comm); }
int ncclCommAbort(void *comm) { return said("abort", "%zu", (size_t)comm); }

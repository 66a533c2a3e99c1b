// A GPU whose memory is the host's, under the names of libcuda and of libamdhip64: it checks and logs every
// call, so that the drivers' own calls are tested where there is no device. It runs no kernel.
//
// HOST_GPU_LOG names the file of the log. HOST_GPU_FAIL=NAME:N lets the Nth call of NAME fail.
// HOST_GPU_DEVICES is the number of devices, 1 if unset.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, FAILED = 719 };
enum { MEMORY, PINNED, MODULE, FUNCTION, STREAM, EVENT, GRAPH, EXEC, KINDS };
enum { MAGIC = 0x7a11, MAX_LAUNCHES = 64, TOTAL = 1 << 26 };

typedef struct {
  int kind, magic;
  char name[64];
  int launches;
  char *lines[MAX_LAUNCHES];
} thing;

static FILE *log_file;
static thing *capture;
static int calls_of_failing;
static size_t used;

static int enter(const char *name) {
  if (!log_file) log_file = fopen(getenv("HOST_GPU_LOG"), "a");
  fprintf(log_file, "%s\n", name);
  fflush(log_file);
  const char *fail = getenv("HOST_GPU_FAIL");
  size_t length = strlen(name);
  if (!fail || strncmp(fail, name, length) || fail[length] != ':') return OK;
  return ++calls_of_failing == atoi(fail + length + 1) ? FAILED : OK;
}

#define ENTER(name)              \
  do {                           \
    int error = enter(name);     \
    if (error) return error;     \
  } while (0)

static int is(const void *handle, int kind) {
  const thing *found = handle;
  return found && found->magic == MAGIC && found->kind == kind;
}

static int make(void **out, int kind, const char *name) {
  thing *made = calloc(1, sizeof(thing));
  made->kind = kind;
  made->magic = MAGIC;
  strncpy(made->name, name, sizeof made->name - 1);
  *out = made;
  return OK;
}

static int drop(void *handle, int kind) {
  if (!is(handle, kind)) return INVALID;
  ((thing *)handle)->magic = 0;
  return OK;
}

static int devices(void) {
  const char *count = getenv("HOST_GPU_DEVICES");
  return count ? atoi(count) : 1;
}

// Blocks carry their size before them.
static int allocate(void **out, size_t size, const char *word) {
  if (!strcmp(word, "memory") && used + size > TOTAL) return OUT_OF_MEMORY;
  char *block = NULL;
  if (posix_memalign((void **)&block, 256, size + 256)) return OUT_OF_MEMORY;
  *(size_t *)block = size;
  memset(block + 256, 0xff, size);
  *out = block + 256;
  if (!strcmp(word, "memory")) used += size;
  fprintf(log_file, "+%s %llu %llu\n", word, (unsigned long long)(uintptr_t)*out, (unsigned long long)size);
  return OK;
}

static int release(void *pointer, const char *word) {
  char *block = (char *)pointer - 256;
  if (!strcmp(word, "memory")) used -= *(size_t *)block;
  fprintf(log_file, "-%s %llu\n", word, (unsigned long long)(uintptr_t)pointer);
  free(block);
  return OK;
}

static int init(unsigned flags) {
  ENTER("Init");
  if (flags) return INVALID;
  return devices() ? OK : NO_DEVICE;
}

static int device_count(int *count) {
  ENTER("DeviceGetCount");
  *count = devices();
  return *count ? OK : NO_DEVICE;
}

static int device_name(char *name, int length, int device) {
  ENTER("DeviceGetName");
  if (device >= devices()) return INVALID;
  snprintf(name, length, "host GPU");
  return OK;
}

static int memory_info(size_t *free_bytes, size_t *total) {
  ENTER("MemGetInfo");
  *free_bytes = TOTAL - used;
  *total = TOTAL;
  return OK;
}

static int memory_allocate(void **out, size_t size) {
  ENTER("MemAlloc");
  return allocate(out, size, "memory");
}

static int memory_free(void *pointer) {
  ENTER("MemFree");
  return release(pointer, "memory");
}

static int host_allocate(void **out, size_t size, unsigned flags) {
  ENTER("HostAlloc");
  return flags > 1 ? INVALID : allocate(out, size, "pinned");
}

static int host_free(void *pointer) {
  ENTER("HostFree");
  return release(pointer, "pinned");
}

static int copy_in(void *target, const void *source, size_t size, void *stream) {
  ENTER("MemcpyHtoDAsync");
  if (!is(stream, STREAM)) return INVALID;
  memcpy(target, source, size);
  return OK;
}

static int copy_out(void *target, const void *source, size_t size, void *stream) {
  ENTER("MemcpyDtoHAsync");
  if (!is(stream, STREAM)) return INVALID;
  memcpy(target, source, size);
  return OK;
}

static int fill(void *target, unsigned char value, size_t size, void *stream) {
  ENTER("MemsetD8Async");
  if (!is(stream, STREAM)) return INVALID;
  memset(target, value, size);
  return OK;
}

static int module_load(void **module, const void *image) {
  ENTER("ModuleLoadData");
  fprintf(log_file, "image %.5s\n", (const char *)image + (*(const char *)image == 0x7f));
  return make(module, MODULE, "module");
}

static int module_unload(void *module) {
  ENTER("ModuleUnload");
  return drop(module, MODULE);
}

static int module_function(void **function, void *module, const char *name) {
  ENTER("ModuleGetFunction");
  return is(module, MODULE) ? make(function, FUNCTION, name) : INVALID;
}

static int function_attribute(void *function, int attribute, int value) {
  ENTER("FuncSetAttribute");
  if (!is(function, FUNCTION)) return INVALID;
  fprintf(log_file, "attribute %s %d %d\n", ((thing *)function)->name, attribute, value);
  return OK;
}

// `end` is the vendor's mark of the end of `extra`.
static int launch(void *function, const unsigned *sizes, void *stream, void **parameters, void **extra, int end) {
  ENTER("LaunchKernel");
  if (!is(function, FUNCTION) || !is(stream, STREAM) || parameters || !extra) return INVALID;
  if ((uintptr_t)extra[0] != 1 || (uintptr_t)extra[2] != 2 || (uintptr_t)extra[4] != (uintptr_t)end) return INVALID;
  const unsigned char *buffer = extra[1];
  size_t size = *(size_t *)extra[3];
  char *line = malloc(256 + 2 * size), *at = line;
  at += sprintf(at, "run %s", ((thing *)function)->name);
  for (int axis = 0; axis < 7; axis++) at += sprintf(at, " %u", sizes[axis]);
  *at++ = ' ';
  for (size_t byte = 0; byte < size; byte++) at += sprintf(at, "%02x", buffer[byte]);
  if (!capture) {
    fprintf(log_file, "%s\n", line);
    free(line);
  } else if (capture->launches < MAX_LAUNCHES) {
    capture->lines[capture->launches++] = line;
  } else {
    return OUT_OF_MEMORY;
  }
  return OK;
}

static int stream_create(void **stream, unsigned flags) {
  ENTER("StreamCreate");
  return flags == 1 ? make(stream, STREAM, "stream") : INVALID;
}

static int stream_destroy(void *stream) {
  ENTER("StreamDestroy");
  return drop(stream, STREAM);
}

static int stream_synchronize(void *stream) {
  ENTER("StreamSynchronize");
  return is(stream, STREAM) && !capture ? OK : INVALID;
}

static int event_create(void **event) {
  ENTER("EventCreate");
  return make(event, EVENT, "event");
}

static int event_create_flags(void **event, unsigned flags) { return flags ? INVALID : event_create(event); }

static int event_destroy(void *event) {
  ENTER("EventDestroy");
  return drop(event, EVENT);
}

static int event_record(void *event, void *stream) {
  ENTER("EventRecord");
  return is(event, EVENT) && is(stream, STREAM) ? OK : INVALID;
}

static int event_synchronize(void *event) {
  ENTER("EventSynchronize");
  return is(event, EVENT) ? OK : INVALID;
}

static int event_elapsed(float *milliseconds, void *start, void *end) {
  ENTER("EventElapsedTime");
  *milliseconds = 2.5f;
  return is(start, EVENT) && is(end, EVENT) ? OK : INVALID;
}

static int capture_begin(void *stream, int mode) {
  ENTER("StreamBeginCapture");
  if (!is(stream, STREAM) || mode != 1 || capture) return INVALID;
  return make((void **)&capture, GRAPH, "graph");
}

static int capture_end(void *stream, void **graph) {
  ENTER("StreamEndCapture");
  if (!is(stream, STREAM) || !capture) return INVALID;
  *graph = capture;
  capture = NULL;
  return OK;
}

static int instantiate(void **exec, void *graph) {
  ENTER("GraphInstantiate");
  if (!is(graph, GRAPH)) return INVALID;
  make(exec, EXEC, "exec");
  ((thing *)*exec)->launches = ((thing *)graph)->launches;
  memcpy(((thing *)*exec)->lines, ((thing *)graph)->lines, sizeof ((thing *)graph)->lines);
  return OK;
}

static int graph_launch(void *exec, void *stream) {
  ENTER("GraphLaunch");
  if (!is(exec, EXEC) || !is(stream, STREAM)) return INVALID;
  for (int at = 0; at < ((thing *)exec)->launches; at++) fprintf(log_file, "%s\n", ((thing *)exec)->lines[at]);
  return OK;
}

static int graph_destroy(void *graph) {
  ENTER("GraphDestroy");
  return drop(graph, GRAPH);
}

static int exec_destroy(void *exec) {
  ENTER("GraphExecDestroy");
  return drop(exec, EXEC);
}

static const char *error_text(int error) {
  switch (error) {
    case INVALID: return "invalid argument";
    case OUT_OF_MEMORY: return "out of memory";
    case NO_DEVICE: return "no device is detected";
    case FAILED: return "unspecified launch failure";
    default: return "unknown";
  }
}

// ---- CUDA: every function is asked for by name ----

static int cu_version(int *version) { return *version = 13000, OK; }
static int cu_device(int *device, int ordinal) { return *device = ordinal, OK; }
static int cu_attribute(int *value, int attribute, int device) {
  ENTER("DeviceGetAttribute");
  if (device || attribute < 75 || attribute > 76) return INVALID;
  *value = attribute == 75 ? 8 : 6;
  return OK;
}
static int context;
static int cu_retain(void **out, int device) {
  ENTER("DevicePrimaryCtxRetain");
  *out = &context;
  return device ? INVALID : OK;
}
static int cu_release(int device) {
  ENTER("DevicePrimaryCtxRelease");
  return device ? INVALID : OK;
}
static int cu_current(void *given) {
  ENTER("CtxSetCurrent");
  return given == &context ? OK : INVALID;
}
static int cu_launch(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                     unsigned shared, void *stream, void **parameters, void **extra) {
  unsigned sizes[] = {gx, gy, gz, bx, by, bz, shared};
  return launch(function, sizes, stream, parameters, extra, 0);
}
static int cu_instantiate(void **exec, void *graph, unsigned long long flags) {
  return flags ? INVALID : instantiate(exec, graph);
}
static int cu_error_string(int error, const char **text) { return *text = error_text(error), OK; }

#define NAMED(name, function) {name, (void *)function}
static const struct { const char *name; void *function; } CUDA[] = {
    NAMED("cuInit", init), NAMED("cuDriverGetVersion", cu_version), NAMED("cuDeviceGetCount", device_count),
    NAMED("cuDeviceGet", cu_device), NAMED("cuDeviceGetAttribute", cu_attribute), NAMED("cuDeviceGetName", device_name),
    NAMED("cuDevicePrimaryCtxRetain", cu_retain), NAMED("cuDevicePrimaryCtxRelease", cu_release),
    NAMED("cuCtxSetCurrent", cu_current), NAMED("cuMemGetInfo", memory_info), NAMED("cuMemAlloc", memory_allocate),
    NAMED("cuMemFree", memory_free), NAMED("cuMemHostAlloc", host_allocate), NAMED("cuMemFreeHost", host_free),
    NAMED("cuMemcpyHtoDAsync", copy_in), NAMED("cuMemcpyDtoHAsync", copy_out), NAMED("cuMemsetD8Async", fill),
    NAMED("cuModuleLoadData", module_load), NAMED("cuModuleUnload", module_unload),
    NAMED("cuModuleGetFunction", module_function), NAMED("cuFuncSetAttribute", function_attribute),
    NAMED("cuLaunchKernel", cu_launch), NAMED("cuStreamCreate", stream_create),
    NAMED("cuStreamDestroy", stream_destroy), NAMED("cuStreamSynchronize", stream_synchronize),
    NAMED("cuEventCreate", event_create_flags), NAMED("cuEventDestroy", event_destroy),
    NAMED("cuEventRecord", event_record), NAMED("cuEventSynchronize", event_synchronize),
    NAMED("cuEventElapsedTime", event_elapsed), NAMED("cuStreamBeginCapture", capture_begin),
    NAMED("cuStreamEndCapture", capture_end), NAMED("cuGraphInstantiateWithFlags", cu_instantiate),
    NAMED("cuGraphInstantiate", cu_instantiate), NAMED("cuGraphLaunch", graph_launch),
    NAMED("cuGraphDestroy", graph_destroy), NAMED("cuGraphExecDestroy", exec_destroy),
    NAMED("cuGetErrorString", cu_error_string),
};

int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, void *status) {
  (void)version, (void)flags, (void)status;
  *function = NULL;
  for (size_t at = 0; at < sizeof CUDA / sizeof *CUDA; at++)
    if (!strcmp(CUDA[at].name, name)) *function = CUDA[at].function;
  return *function ? OK : 500;
}

// ---- HIP: functions of the library ----

int hipInit(unsigned flags) { return init(flags); }
int hipGetDeviceCount(int *count) { return device_count(count); }
int hipSetDevice(int device) {
  ENTER("CtxSetCurrent");
  return device < devices() ? OK : INVALID;
}
int hipDeviceGetName(char *name, int length, int device) { return device_name(name, length, device); }
int hipGetDevicePropertiesR0600(char *properties, int device) {
  ENTER("GetDeviceProperties");
  strcpy(properties, "gfx000 is a name, not an architecture");
  strcpy(properties + 1160, "gfx942:sramecc+:xnack-");
  return device ? INVALID : OK;
}
int hipMemGetInfo(size_t *free_bytes, size_t *total) { return memory_info(free_bytes, total); }
int hipMalloc(void **out, size_t size) { return memory_allocate(out, size); }
int hipFree(void *pointer) { return memory_free(pointer); }
int hipHostMalloc(void **out, size_t size, unsigned flags) { return host_allocate(out, size, flags); }
int hipHostFree(void *pointer) { return host_free(pointer); }
int hipMemcpyHtoDAsync(void *to, const void *from, size_t size, void *stream) { return copy_in(to, from, size, stream); }
int hipMemcpyDtoHAsync(void *to, void *from, size_t size, void *stream) { return copy_out(to, from, size, stream); }
int hipMemsetD8Async(void *to, unsigned char value, size_t size, void *stream) { return fill(to, value, size, stream); }
int hipModuleLoadData(void **module, const void *image) { return module_load(module, image); }
int hipModuleUnload(void *module) { return module_unload(module); }
int hipModuleGetFunction(void **function, void *module, const char *name) {
  return module_function(function, module, name);
}
int hipModuleLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared, void *stream, void **parameters, void **extra) {
  unsigned sizes[] = {gx, gy, gz, bx, by, bz, shared};
  return launch(function, sizes, stream, parameters, extra, 3);
}
int hipStreamCreateWithFlags(void **stream, unsigned flags) { return stream_create(stream, flags); }
int hipStreamDestroy(void *stream) { return stream_destroy(stream); }
int hipStreamSynchronize(void *stream) { return stream_synchronize(stream); }
int hipEventCreate(void **event) { return event_create(event); }
int hipEventDestroy(void *event) { return event_destroy(event); }
int hipEventRecord(void *event, void *stream) { return event_record(event, stream); }
int hipEventSynchronize(void *event) { return event_synchronize(event); }
int hipEventElapsedTime(float *milliseconds, void *start, void *end) { return event_elapsed(milliseconds, start, end); }
int hipStreamBeginCapture(void *stream, int mode) { return capture_begin(stream, mode); }
int hipStreamEndCapture(void *stream, void **graph) { return capture_end(stream, graph); }
int hipGraphInstantiate(void **exec, void *graph, void **node, char *text, size_t size) {
  return node || text || size ? INVALID : instantiate(exec, graph);
}
int hipGraphLaunch(void *exec, void *stream) { return graph_launch(exec, stream); }
int hipGraphDestroy(void *graph) { return graph_destroy(graph); }
int hipGraphExecDestroy(void *exec) { return exec_destroy(exec); }
const char *hipGetErrorString(int error) { return error_text(error); }
const char *hipGetErrorName(int error) { return error == FAILED ? "hipErrorLaunchFailure" : "hipError"; }

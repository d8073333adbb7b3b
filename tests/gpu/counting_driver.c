/* A libcuda.so.1 without a GPU: device memory is host memory, copies are copies, kernels are loaded and not run. It counts what
 * a program asks of it, and writes the counts as a line of JSON to $COUNTING_DRIVER_LOG at the end and at each SIGUSR1. Results of kernels are whatever
 * memory held.
 *
 *     cc -O2 -shared -fPIC -Wl,-soname,libcuda.so.1 -o libcuda.so.1 counting_driver.c
 *
 * It has what cudarc 0.19 and NVRTC 13 call; signatures and numbers are cuda.h's. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int status;
typedef uint64_t address;
typedef void *handle;

enum { OK = 0, OUT_OF_MEMORY = 2, NOT_FOUND = 500 };
static const uint64_t MEMORY = 150754820096ull; /* of an H200 */

/* Counts. */
enum { LAUNCHES, TO_DEVICE, TO_DEVICE_BYTES, TO_HOST, TO_HOST_BYTES, ON_DEVICE, ON_DEVICE_BYTES, SYNCHRONISATIONS, MODULES, COUNTS };
static const char *const names[COUNTS] = {"launches", "to_device", "to_device_bytes", "to_host", "to_host_bytes",
                                          "on_device", "on_device_bytes", "synchronisations", "modules"};
static atomic_ullong counts[COUNTS];
static atomic_ullong held, peak;

static void count(int what, uint64_t by) { atomic_fetch_add(&counts[what], by); }

static void copied(int kind, size_t bytes) {
    count(kind, 1);
    count(kind + 1, bytes);
}

static void report(void) {
    const char *path = getenv("COUNTING_DRIVER_LOG");
    FILE *file = path ? fopen(path, "a") : stderr;
    if (!file) return;
    fputc('{', file);
    for (int i = 0; i < COUNTS; i++) fprintf(file, "\"%s\": %llu, ", names[i], (unsigned long long)counts[i]);
    fprintf(file, "\"peak_bytes\": %llu}\n", (unsigned long long)peak);
    if (path) fclose(file);
}

static void on_signal(int signal) {
    (void)signal;
    report();
}

__attribute__((constructor)) static void start(void) { signal(SIGUSR1, on_signal); }
__attribute__((destructor)) static void end(void) { report(); }

/* The device: what cubecl asks of a Hopper. */
status cuInit(unsigned flags) { return OK; }
status cuDriverGetVersion(int *version) { *version = 13000; return OK; }
status cuDeviceGetCount(int *number) { *number = 1; return OK; }
status cuDeviceGet(int *device, int index) { *device = index; return OK; }
status cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "counting driver"); return OK; }
status cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = MEMORY; return OK; }
status cuMemGetInfo_v2(size_t *unused, size_t *total) { *total = MEMORY; *unused = MEMORY - held; return OK; }
status cuDeviceGetPCIBusId(char *id, int length, int device) { snprintf(id, length, "0000:01:00.0"); return OK; }
status cuDeviceGetUuid(char *id, int device) { memset(id, 1, 16); return OK; }
status cuDeviceGetUuid_v2(char *id, int device) { memset(id, 1, 16); return OK; }

static const int attributes[][2] = {
    {1, 1024},   {2, 1024},    {3, 1024},  {4, 64},        {5, 2147483647}, {6, 65535},   {7, 65535},  {8, 49152},
    {9, 65536},  {10, 32},     {12, 65536}, {13, 1980000}, {16, 132},       {36, 3201000}, {37, 6144}, {38, 62914560},
    {39, 2048},  {41, 1},      {75, 9},    {76, 0},        {81, 233472},    {82, 65536},  {97, 232448}, {115, 1}, {116, 1},
};

status cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = 0;
    for (size_t i = 0; i < sizeof attributes / sizeof *attributes; i++)
        if (attributes[i][0] == attribute) *value = attributes[i][1];
    return OK;
}

/* Contexts, streams, events: numbers. */
static atomic_ulong next_handle = 4096;
static __thread handle current;
static status new_handle(handle *made) { *made = (handle)(uintptr_t)atomic_fetch_add(&next_handle, 1); return OK; }

status cuDevicePrimaryCtxRetain(handle *context, int device) { *context = (handle)(uintptr_t)1024; return OK; }
status cuDevicePrimaryCtxRelease_v2(int device) { return OK; }
status cuCtxSetCurrent(handle context) { current = context; return OK; }
status cuCtxGetCurrent(handle *context) { *context = current; return OK; }
status cuCtxGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return OK; }
status cuCtxSynchronize(void) { count(SYNCHRONISATIONS, 1); return OK; }
status cuStreamCreate(handle *stream, unsigned flags) { return new_handle(stream); }
status cuStreamCreateWithPriority(handle *stream, unsigned flags, int priority) { return new_handle(stream); }
status cuStreamDestroy_v2(handle stream) { return OK; }
status cuStreamSynchronize(handle stream) { count(SYNCHRONISATIONS, 1); return OK; }
status cuStreamWaitEvent(handle stream, handle event, unsigned flags) { return OK; }
status cuStreamIsCapturing(handle stream, int *state) { *state = 0; return OK; }
status cuEventCreate(handle *event, unsigned flags) { return new_handle(event); }
status cuEventDestroy_v2(handle event) { return OK; }
status cuEventRecord(handle event, handle stream) { return OK; }
status cuEventSynchronize(handle event) { count(SYNCHRONISATIONS, 1); return OK; }
status cuEventQuery(handle event) { return OK; }
status cuEventElapsedTime(float *milliseconds, handle from, handle to) { *milliseconds = 0.01f; return OK; }
status cuEventElapsedTime_v2(float *milliseconds, handle from, handle to) { *milliseconds = 0.01f; return OK; }

/* Memory: a header before each piece says how long it is. Untouched pages take no memory. */
enum { HEADER = 4096 };

status cuMemAlloc_v2(address *piece, size_t bytes) {
    size_t all = HEADER + ((bytes + 4095) & ~(size_t)4095);
    char *memory = aligned_alloc(4096, all);
    if (!memory) return OUT_OF_MEMORY;
    *(size_t *)memory = bytes;
    uint64_t now = atomic_fetch_add(&held, bytes) + bytes, most = peak;
    while (now > most && !atomic_compare_exchange_weak(&peak, &most, now)) {
    }
    *piece = (address)(uintptr_t)(memory + HEADER);
    return OK;
}

status cuMemFree_v2(address piece) {
    char *memory = (char *)(uintptr_t)piece - HEADER;
    atomic_fetch_sub(&held, *(size_t *)memory);
    free(memory);
    return OK;
}

status cuMemAllocAsync(address *piece, size_t bytes, handle stream) { return cuMemAlloc_v2(piece, bytes); }
status cuMemFreeAsync(address piece, handle stream) { return cuMemFree_v2(piece); }
status cuMemAllocHost_v2(void **memory, size_t bytes) {
    *memory = aligned_alloc(4096, (bytes + 4095) & ~(size_t)4095);
    return *memory ? OK : OUT_OF_MEMORY;
}
status cuMemHostAlloc(void **memory, size_t bytes, unsigned flags) { return cuMemAllocHost_v2(memory, bytes); }
status cuMemFreeHost(void *memory) { free(memory); return OK; }

/* Copies. */
static status copy(int kind, void *to, const void *from, size_t bytes) {
    copied(kind, bytes);
    memmove(to, from, bytes);
    return OK;
}

status cuMemcpyHtoD_v2(address to, const void *from, size_t bytes) { return copy(TO_DEVICE, (void *)to, from, bytes); }
status cuMemcpyHtoDAsync_v2(address to, const void *from, size_t bytes, handle stream) { return copy(TO_DEVICE, (void *)to, from, bytes); }
status cuMemcpyDtoH_v2(void *to, address from, size_t bytes) { return copy(TO_HOST, to, (void *)from, bytes); }
status cuMemcpyDtoHAsync_v2(void *to, address from, size_t bytes, handle stream) { return copy(TO_HOST, to, (void *)from, bytes); }
status cuMemcpyDtoD_v2(address to, address from, size_t bytes) { return copy(ON_DEVICE, (void *)to, (void *)from, bytes); }
status cuMemcpyDtoDAsync_v2(address to, address from, size_t bytes, handle stream) { return copy(ON_DEVICE, (void *)to, (void *)from, bytes); }
status cuMemsetD8_v2(address to, unsigned char value, size_t bytes) { memset((void *)to, value, bytes); return OK; }
status cuMemsetD8Async(address to, unsigned char value, size_t bytes, handle stream) { memset((void *)to, value, bytes); return OK; }

struct side { size_t x, y; int kind; const void *host; address device; void *array; size_t pitch; };
struct copy_2d { struct side from, to; size_t width, height; };
enum { HOST = 1 };

status cuMemcpy2DAsync_v2(const struct copy_2d *rows, handle stream) {
    const struct side *from = &rows->from, *to = &rows->to;
    const char *source = from->kind == HOST ? from->host : (const char *)from->device;
    char *target = to->kind == HOST ? (char *)to->host : (char *)to->device;
    for (size_t row = 0; row < rows->height; row++)
        memmove(target + (to->y + row) * to->pitch + to->x, source + (from->y + row) * from->pitch + from->x, rows->width);
    copied(from->kind == HOST ? TO_DEVICE : to->kind == HOST ? TO_HOST : ON_DEVICE, rows->width * rows->height);
    return OK;
}

/* Kernels. */
status cuModuleLoadData(handle *module, const void *image) { count(MODULES, 1); return new_handle(module); }
status cuModuleUnload(handle module) { return OK; }
status cuModuleGetFunction(handle *function, handle module, const char *name) { return new_handle(function); }
status cuFuncSetAttribute(handle function, int attribute, int value) { return OK; }
status cuFuncGetAttribute(int *value, int attribute, handle function) { *value = 0; return OK; }
status cuFuncSetCacheConfig(handle function, int config) { return OK; }
status cuLaunchKernel(handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, handle stream, void **parameters, void **extra) {
    count(LAUNCHES, 1);
    return OK;
}
status cuLaunchKernelEx(const void *config, handle function, void **parameters, void **extra) { count(LAUNCHES, 1); return OK; }
status cuTensorMapEncodeTiled(void *map) { return OK; }
status cuTensorMapEncodeIm2col(void *map) { return OK; }
status cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, handle function, int size, size_t shared) { *blocks = 2; return OK; }
status cuPointerGetAttribute(void *value, int attribute, address pointer) { return NOT_FOUND; }
status cuGetErrorName(int error, const char **text) { *text = "CUDA_ERROR"; return OK; }
status cuGetErrorString(int error, const char **text) { *text = "an error of the counting driver"; return OK; }
/* NVRTC asks for a table of the driver's own; without it, it does what it does where there is no driver. */
status cuGetExportTable(const void **table, const void *id) { if (table) *table = NULL; return NOT_FOUND; }

/* A libcuda.so.1 without a GPU: device memory is reserved address space, kernels are loaded and not run. It counts what a program
 * asks of it and writes the counts as a line of JSON to $COUNTING_DRIVER_LOG at the end and at each SIGUSR1. Results of kernels
 * are zeros, or whatever was copied there.
 *
 *     cc -O2 -shared -fPIC -Wl,-soname,libcuda.so.1 -o libcuda.so.1 counting_driver.c
 *
 *     COUNTING_DRIVER_LOG         file of counts (default: stderr)
 *     COUNTING_DRIVER_TRACE       file with a line for each launch, copy, synchronisation and allocation; in LD_PRELOAD, also for
 *                                 each line of metrics.jsonl that `train` writes
 *     COUNTING_DRIVER_CAPABILITY  compute capability, 80 or 90 (default 90)
 *     COUNTING_DRIVER_ZEROS       what the program reads is zeros, also where something was copied there
 *
 * Copies of more than 1 MiB are counted and not made, so that a model of any size takes no memory here. The driver has what cudarc
 * 0.19 and NVRTC 13 call; signatures and numbers are cuda.h's. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef int status;
typedef uint64_t address;
typedef void *handle;

enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500 };
static const uint64_t MEMORY = 150754820096ull; /* of an H200 */
enum { LARGEST_COPY = 1 << 20 };

/* Counts. */
enum { LAUNCHES, TO_DEVICE, TO_DEVICE_BYTES, TO_HOST, TO_HOST_BYTES, ON_DEVICE, ON_DEVICE_BYTES, SYNCHRONISATIONS, MODULES,
       ALLOCATIONS, COUNTS };
static const char *const names[COUNTS] = {"launches", "to_device", "to_device_bytes", "to_host", "to_host_bytes", "on_device",
                                          "on_device_bytes", "synchronisations", "modules", "allocations"};
static atomic_ullong counts[COUNTS];
static unsigned long long held, peak;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static FILE *trace;

/* A kernel, and how often it was launched; a function handle points to one. Equal names share one. */
struct kernel { char name[160]; atomic_ullong launches; struct kernel *next; };
static struct kernel *kernels;

static void note(const char *what, unsigned long long bytes) {
    if (trace) fprintf(trace, "%s %llu\n", what, bytes);
}

static void count(int what, uint64_t by) { atomic_fetch_add(&counts[what], by); }

static void copied(int kind, size_t bytes) {
    count(kind, 1);
    count(kind + 1, bytes);
    note(names[kind], bytes);
}

static status synchronised(const char *what) {
    count(SYNCHRONISATIONS, 1);
    note(what, 0);
    return OK;
}

static void report(void) {
    const char *path = getenv("COUNTING_DRIVER_LOG");
    FILE *file = path ? fopen(path, "a") : stderr;
    if (!file) return;
    fputc('{', file);
    for (int i = 0; i < COUNTS; i++) fprintf(file, "\"%s\": %llu, ", names[i], (unsigned long long)counts[i]);
    fprintf(file, "\"peak_bytes\": %llu, \"kernels\": {", peak);
    const char *between = "";
    for (struct kernel *kernel = kernels; kernel; kernel = kernel->next) {
        if (!kernel->launches) continue;
        fprintf(file, "%s\"%s\": %llu", between, kernel->name, (unsigned long long)kernel->launches);
        between = ", ";
    }
    fputs("}}\n", file);
    if (path) fclose(file);
}

static void on_signal(int signal) {
    (void)signal;
    report();
}

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("COUNTING_DRIVER_TRACE");
    if (path) trace = fopen(path, "w");
    signal(SIGUSR1, on_signal);
}
__attribute__((destructor)) static void end(void) {
    report();
    if (trace) fflush(trace);
}

/* A step of `train` is over: in place of libc's. */
ssize_t write(int file, const void *bytes, size_t count) {
    static const char step[] = "{\"step\":";
    if (count > sizeof step && !memcmp(bytes, step, sizeof step - 1)) note("logged", 0);
    return syscall(SYS_write, file, bytes, count);
}

/* The device: what cubecl asks of a Hopper. */
status cuInit(unsigned flags) { return OK; }
status cuDriverGetVersion(int *version) { *version = 13000; return OK; }
status cuDeviceGetCount(int *number) { *number = 1; return OK; }
status cuDeviceGet(int *device, int index) { *device = index; return OK; }
status cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "counting driver"); return OK; }
status cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = MEMORY; return OK; }
status cuMemGetInfo_v2(size_t *unused, size_t *total) { *total = MEMORY; *unused = MEMORY > held ? MEMORY - held : 0; return OK; }
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
    const char *capability = getenv("COUNTING_DRIVER_CAPABILITY");
    int version = capability ? atoi(capability) : 90;
    if (attribute == 75) *value = version / 10;
    if (attribute == 76) *value = version % 10;
    if (version < 90 && attribute == 97) *value = 166912; /* shared memory of a block, of an A100 */
    if (version < 90 && attribute == 81) *value = 167936;
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
status cuCtxSynchronize(void) { return synchronised("context_synchronised"); }
status cuStreamCreate(handle *stream, unsigned flags) { return new_handle(stream); }
status cuStreamCreateWithPriority(handle *stream, unsigned flags, int priority) { return new_handle(stream); }
status cuStreamDestroy_v2(handle stream) { return OK; }
status cuStreamSynchronize(handle stream) { return synchronised("stream_synchronised"); }
status cuStreamWaitEvent(handle stream, handle event, unsigned flags) { return OK; }
status cuStreamIsCapturing(handle stream, int *state) { *state = 0; return OK; }
status cuEventCreate(handle *event, unsigned flags) { return new_handle(event); }
status cuEventDestroy_v2(handle event) { return OK; }
status cuEventRecord(handle event, handle stream) { return OK; }
status cuEventSynchronize(handle event) { return synchronised("event_synchronised"); }
status cuEventQuery(handle event) { return OK; }
status cuEventElapsedTime(float *milliseconds, handle from, handle to) { *milliseconds = 0.01f; return OK; }
status cuEventElapsedTime_v2(float *milliseconds, handle from, handle to) { *milliseconds = 0.01f; return OK; }

/* Memory: pages that are never written take none. Sizes are kept beside the addresses. */
struct piece { address at; size_t bytes, mapped; struct piece *next; };
enum { BUCKETS = 1 << 14 };
static struct piece *pieces[BUCKETS];

static struct piece **bucket(address at) { return &pieces[(at >> 12) & (BUCKETS - 1)]; }

status cuMemAlloc_v2(address *at, size_t bytes) {
    if (bytes == 0) return INVALID;
    if (held + bytes > MEMORY) return OUT_OF_MEMORY;
    size_t mapped = (bytes + 4095) & ~(size_t)4095;
    void *memory = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return OUT_OF_MEMORY;
    struct piece *piece = malloc(sizeof *piece);
    *piece = (struct piece){(address)(uintptr_t)memory, bytes, mapped, NULL};
    pthread_mutex_lock(&lock);
    piece->next = *bucket(piece->at);
    *bucket(piece->at) = piece;
    held += bytes;
    if (held > peak) peak = held;
    pthread_mutex_unlock(&lock);
    count(ALLOCATIONS, 1);
    note("allocated", bytes);
    *at = piece->at;
    return OK;
}

status cuMemFree_v2(address at) {
    pthread_mutex_lock(&lock);
    struct piece **link = bucket(at), *piece;
    while ((piece = *link) && piece->at != at) link = &piece->next;
    if (piece) {
        *link = piece->next;
        held -= piece->bytes;
    }
    pthread_mutex_unlock(&lock);
    if (!piece) return INVALID;
    note("freed", piece->bytes);
    munmap((void *)(uintptr_t)piece->at, piece->mapped);
    free(piece);
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

/* Copies. The program reads zeros where a large one would have to come from. */
static int zeros(int kind, size_t bytes) { return kind == TO_HOST && (bytes > LARGEST_COPY || getenv("COUNTING_DRIVER_ZEROS")); }

static status copy(int kind, void *to, const void *from, size_t bytes) {
    copied(kind, bytes);
    if (zeros(kind, bytes)) memset(to, 0, bytes);
    else if (bytes <= LARGEST_COPY) memmove(to, from, bytes);
    return OK;
}

status cuMemcpyHtoD_v2(address to, const void *from, size_t bytes) { return copy(TO_DEVICE, (void *)to, from, bytes); }
status cuMemcpyHtoDAsync_v2(address to, const void *from, size_t bytes, handle stream) { return copy(TO_DEVICE, (void *)to, from, bytes); }
status cuMemcpyDtoH_v2(void *to, address from, size_t bytes) { return copy(TO_HOST, to, (void *)from, bytes); }
status cuMemcpyDtoHAsync_v2(void *to, address from, size_t bytes, handle stream) { return copy(TO_HOST, to, (void *)from, bytes); }
status cuMemcpyDtoD_v2(address to, address from, size_t bytes) { return copy(ON_DEVICE, (void *)to, (void *)from, bytes); }
status cuMemcpyDtoDAsync_v2(address to, address from, size_t bytes, handle stream) { return copy(ON_DEVICE, (void *)to, (void *)from, bytes); }
static status set(address to, unsigned char value, size_t bytes) {
    note("set", bytes);
    if (bytes <= LARGEST_COPY) memset((void *)to, value, bytes);
    return OK;
}
status cuMemsetD8_v2(address to, unsigned char value, size_t bytes) { return set(to, value, bytes); }
status cuMemsetD8Async(address to, unsigned char value, size_t bytes, handle stream) { return set(to, value, bytes); }

struct side { size_t x, y; int kind; const void *host; address device; void *array; size_t pitch; };
struct copy_2d { struct side from, to; size_t width, height; };
enum { HOST = 1 };

status cuMemcpy2DAsync_v2(const struct copy_2d *rows, handle stream) {
    const struct side *from = &rows->from, *to = &rows->to;
    const char *source = from->kind == HOST ? from->host : (const char *)from->device;
    char *target = to->kind == HOST ? (char *)to->host : (char *)to->device;
    size_t bytes = rows->width * rows->height;
    int kind = from->kind == HOST ? TO_DEVICE : to->kind == HOST ? TO_HOST : ON_DEVICE;
    for (size_t row = 0; row < rows->height; row++) {
        char *of_row = target + (to->y + row) * to->pitch + to->x;
        if (zeros(kind, bytes)) memset(of_row, 0, rows->width);
        else if (bytes <= LARGEST_COPY) memmove(of_row, source + (from->y + row) * from->pitch + from->x, rows->width);
    }
    copied(kind, bytes);
    return OK;
}

/* Kernels. */
static status launched(struct kernel *kernel) {
    count(LAUNCHES, 1);
    atomic_fetch_add(&kernel->launches, 1);
    note(kernel->name, 0);
    return OK;
}

static struct kernel *kernel_of(const char *name) {
    char cut[sizeof kernels->name];
    snprintf(cut, sizeof cut, "%s", name);
    pthread_mutex_lock(&lock);
    struct kernel *kernel = kernels;
    while (kernel && strcmp(kernel->name, cut)) kernel = kernel->next;
    if (!kernel) {
        kernel = calloc(1, sizeof *kernel);
        strcpy(kernel->name, cut);
        kernel->next = kernels;
        kernels = kernel;
    }
    pthread_mutex_unlock(&lock);
    return kernel;
}

status cuModuleLoadData(handle *module, const void *image) { count(MODULES, 1); return new_handle(module); }
status cuModuleUnload(handle module) { return OK; }
status cuModuleGetFunction(handle *function, handle module, const char *name) { *function = kernel_of(name); return OK; }
status cuFuncSetAttribute(handle function, int attribute, int value) { return OK; }
status cuFuncGetAttribute(int *value, int attribute, handle function) { *value = 0; return OK; }
status cuFuncSetCacheConfig(handle function, int config) { return OK; }
status cuLaunchKernel(handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, handle stream, void **parameters, void **extra) {
    return launched(function);
}
status cuLaunchKernelEx(const void *config, handle function, void **parameters, void **extra) { return launched(function); }
status cuTensorMapEncodeTiled(void *map) { return OK; }
status cuTensorMapEncodeIm2col(void *map) { return OK; }
status cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, handle function, int size, size_t shared) { *blocks = 2; return OK; }
status cuPointerGetAttribute(void *value, int attribute, address pointer) { return NOT_FOUND; }
status cuGetErrorName(int error, const char **text) { *text = "CUDA_ERROR"; return OK; }
status cuGetErrorString(int error, const char **text) { *text = "an error of the counting driver"; return OK; }
/* For stand_in_cublas_lt.c: counts a launch of a kernel; whether memory was given out and not freed since. */
void counting_driver_launched(const char *name) { launched(kernel_of(name)); }
int counting_driver_holds(address at, size_t bytes) {
    int found = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < BUCKETS && !found; i++)
        for (struct piece *piece = pieces[i]; piece && !found; piece = piece->next)
            found = at >= piece->at && at + bytes <= piece->at + piece->bytes;
    pthread_mutex_unlock(&lock);
    return found;
}
/* NVRTC asks for a table of the driver's own; without it, it does what it does where there is no driver. */
status cuGetExportTable(const void **table, const void *id) { if (table) *table = NULL; return NOT_FOUND; }

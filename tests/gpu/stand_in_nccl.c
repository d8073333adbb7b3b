// Stands in for libnccl.so.2 in tests: ranks are threads or processes of one machine, buffers are in the host's memory, sums are
// taken in rank order. It behaves as NCCL with non-blocking communicators: calls return ncclInProgress, a thread of the
// communicator carries them out, and ncclCommGetAsyncError says when it has. Ranks meet in a file in /dev/shm.
//
//   STAND_IN_NCCL_VERSION=<code>               what ncclGetVersion says (default 22304)
//   STAND_IN_NCCL_LOG=<folder>                 a line for each exchange, in <folder>/<rank>
//   STAND_IN_NCCL_FAULT=<kind>:<rank>:<call>   at the rank's call (counted from 0; init: when it connects)
//     fail   the call returns an error            hang   the call never returns
//     async  an error that is seen later          stuck  the exchange is never carried out
//     kill   the process is killed
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef enum { Success = 0, SystemError = 2, InvalidArgument = 4, InvalidUsage = 5, RemoteError = 6, InProgress = 7 } Result;
typedef struct { char internal[128]; } UniqueId;
typedef struct { size_t size; unsigned magic; unsigned version; int blocking; } Config;

// The program's tests may pass host memory to this library, and to no other.
int llava_stand_in_nccl = 1;

enum { MAX_RANKS = 64, CHUNK = 1 << 16 };  // CHUNK: values that a rank hands on at once
typedef enum { None, ReduceScatter, AllGather } Kind;

typedef struct {
    atomic_int arrived, generation, connected;
    struct { int kind; size_t count; } posted[MAX_RANKS];
    float values[];  // CHUNK for each rank
} Shared;

typedef struct Operation {
    Kind kind;
    const float *send;
    float *receive;
    size_t count, size;  // values, bytes of each
    int stuck;
    struct Operation *next;
} Operation;

typedef struct Communicator {
    Shared *shared;
    size_t bytes;
    int rank, ranks, calls;
    char path[160];
    FILE *log;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    Operation *first, *last;
    atomic_int pending, aborted, ended, error;
} Communicator;

static int fault_at(const char *kind, int rank, const char *call) {
    const char *fault = getenv("STAND_IN_NCCL_FAULT");
    char expected[96];
    snprintf(expected, sizeof expected, "%s:%d:%s", kind, rank, call);
    return fault && strcmp(fault, expected) == 0;
}

// Faults before a call is carried out.
static Result faults(int rank, const char *call) {
    if (fault_at("kill", rank, call)) kill(getpid(), SIGKILL);
    if (fault_at("hang", rank, call)) for (;;) sleep(1000);
    return fault_at("fail", rank, call) ? SystemError : Success;
}

// Whether all ranks came; not, if this communicator is aborted.
static int barrier(Communicator *c) {
    Shared *s = c->shared;
    int generation = atomic_load(&s->generation);
    if (atomic_fetch_add(&s->arrived, 1) + 1 == c->ranks) {
        atomic_store(&s->arrived, 0);
        atomic_fetch_add(&s->generation, 1);
        return 1;
    }
    for (int spins = 0; atomic_load(&s->generation) == generation; spins++) {
        if (atomic_load(&c->aborted)) return 0;
        if (spins > 50) usleep(30);
    }
    return 1;
}

static int carry_out(Communicator *c, const Operation *o) {
    Shared *s = c->shared;
    float *own = s->values + (size_t)c->rank * CHUNK;
    s->posted[c->rank].kind = o->kind;
    s->posted[c->rank].count = o->count * o->size;
    if (!barrier(c)) return 0;
    for (int rank = 0; rank < c->ranks; rank++)
        if (s->posted[rank].kind != (int)o->kind || s->posted[rank].count != o->count * o->size) {
            atomic_store(&c->error, InvalidUsage);
            return 0;
        }
    size_t room = o->kind == ReduceScatter ? CHUNK / (size_t)c->ranks : CHUNK * sizeof(float) / o->size;
    for (size_t start = 0; start < o->count; start += room) {
        size_t len = o->count - start < room ? o->count - start : room;
        if (o->kind == ReduceScatter)
            for (int to = 0; to < c->ranks; to++)
                memcpy(own + (size_t)to * room, o->send + (size_t)to * o->count + start, len * sizeof(float));
        else
            memcpy(own, (const char *)o->send + start * o->size, len * o->size);
        if (!barrier(c)) return 0;
        for (int from = 0; from < c->ranks; from++) {
            const float *values = s->values + (size_t)from * CHUNK;
            if (o->kind == AllGather)
                memcpy((char *)o->receive + ((size_t)from * o->count + start) * o->size, values, len * o->size);
            else
                for (size_t i = 0; i < len; i++) {
                    float value = values[(size_t)c->rank * room + i];
                    o->receive[start + i] = from == 0 ? value : o->receive[start + i] + value;
                }
        }
        if (!barrier(c)) return 0;
    }
    return 1;
}

static void *run(void *of) {
    Communicator *c = of;
    for (;;) {
        pthread_mutex_lock(&c->lock);
        while (!c->first && !atomic_load(&c->ended)) pthread_cond_wait(&c->changed, &c->lock);
        Operation *o = c->first;
        if (o && !(c->first = o->next)) c->last = NULL;
        pthread_mutex_unlock(&c->lock);
        if (!o) return NULL;
        while (o->stuck && !atomic_load(&c->aborted)) usleep(1000);
        int done = o->kind == None ? barrier(c) : carry_out(c, o);
        if (o->kind == None && done && c->rank == 0) unlink(c->path);
        free(o);
        if (!done) return NULL;
        atomic_fetch_sub(&c->pending, 1);
    }
}

static void submit(Communicator *c, Operation operation) {
    Operation *o = malloc(sizeof *o);
    *o = operation;
    atomic_fetch_add(&c->pending, 1);
    pthread_mutex_lock(&c->lock);
    if (c->last) c->last->next = o; else c->first = o;
    c->last = o;
    pthread_cond_signal(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

static Result call(Communicator *c, Operation o, const char *name, int type) {
    char number[16];
    snprintf(number, sizeof number, "%d", c->calls++);
    o.size = type == 7 ? 4 : type == 9 ? 2 : 0;  // ncclFloat32, ncclBfloat16
    if (!o.size || (o.size == 2 && o.kind == ReduceScatter)) return InvalidArgument;
    if (c->log) {
        fprintf(c->log, "%s %zu\n", name, o.count);
        fflush(c->log);
    }
    Result fault = faults(c->rank, number);
    if (fault != Success) return fault;
    if (fault_at("async", c->rank, number)) atomic_store(&c->error, RemoteError);
    o.stuck = fault_at("stuck", c->rank, number);
    submit(c, o);
    return InProgress;
}

Result ncclGetVersion(int *version) {
    const char *said = getenv("STAND_IN_NCCL_VERSION");
    *version = said ? atoi(said) : 22304;
    return Success;
}

const char *ncclGetErrorString(Result result) {
    switch (result) {
        case SystemError: return "unhandled system error (run with NCCL_DEBUG=INFO for details)";
        case InvalidUsage: return "invalid usage (run with NCCL_DEBUG=WARN for details)";
        case RemoteError: return "remote process exited or there was a network error";
        default: return "unknown result code";
    }
}

const char *ncclGetLastError(Communicator *c) {
    (void)c;
    return "said by the stand-in";
}

Result ncclGetUniqueId(UniqueId *id) {
    static atomic_int made;
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "llava-stand-in-nccl-%d-%d", (int)getpid(), atomic_fetch_add(&made, 1));
    return Success;
}

Result ncclCommInitRankConfig(Communicator **made, int ranks, UniqueId id, int rank, Config *config) {
    if (ranks > MAX_RANKS || rank < 0 || rank >= ranks || !config || config->magic != 0xcafebeef || config->blocking != 0)
        return InvalidArgument;
    Result fault = faults(rank, "init");
    if (fault != Success) return fault;
    Communicator *c = calloc(1, sizeof *c);
    c->rank = rank;
    c->ranks = ranks;
    c->bytes = sizeof(Shared) + (size_t)ranks * CHUNK * sizeof(float);
    snprintf(c->path, sizeof c->path, "/dev/shm/%.127s", id.internal);
    int file = open(c->path, O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, (off_t)c->bytes) != 0) return SystemError;
    c->shared = mmap(NULL, c->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (c->shared == MAP_FAILED) return SystemError;
    const char *folder = getenv("STAND_IN_NCCL_LOG");
    if (folder) {
        char path[512];
        snprintf(path, sizeof path, "%s/%d", folder, rank);
        c->log = fopen(path, "w");
    }
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    pthread_create(&c->thread, NULL, run, c);
    submit(c, (Operation){.kind = None});  // All ranks meet.
    *made = c;
    return InProgress;
}

Result ncclCommGetAsyncError(Communicator *c, Result *error) {
    int found = atomic_load(&c->error);
    *error = found ? (Result)found : atomic_load(&c->pending) ? InProgress : Success;
    return Success;
}

Result ncclReduceScatter(const void *send, void *receive, size_t count, int type, int operation, Communicator *c, void *stream) {
    (void)stream;
    if (operation != 0) return InvalidArgument;  // ncclSum
    return call(c, (Operation){.kind = ReduceScatter, .send = send, .receive = receive, .count = count}, "reduce-scatter", type);
}

Result ncclAllGather(const void *send, void *receive, size_t count, int type, Communicator *c, void *stream) {
    (void)stream;
    return call(c, (Operation){.kind = AllGather, .send = send, .receive = receive, .count = count}, "all-gather", type);
}

Result ncclGroupStart(void) { return Success; }

Result ncclGroupEnd(void) { return InProgress; }

static void end(Communicator *c, int aborts) {
    if (aborts) atomic_store(&c->aborted, 1);
    pthread_mutex_lock(&c->lock);
    atomic_store(&c->ended, 1);
    pthread_cond_signal(&c->changed);
    pthread_mutex_unlock(&c->lock);
    pthread_join(c->thread, NULL);
    if (c->log) fclose(c->log);
    munmap(c->shared, c->bytes);
    unlink(c->path);  // There is none any more, unless a rank did not come.
    free(c);
}

Result ncclCommFinalize(Communicator *c) {
    (void)c;
    return Success;
}

Result ncclCommDestroy(Communicator *c) {
    end(c, 0);
    return Success;
}

Result ncclCommAbort(Communicator *c) {
    end(c, 1);
    return Success;
}

/* Stands in for libcublasLt.so.13 in tests: matrices are in the host's memory, a product is computed in the call. It takes what this
 * project asks of cuBLASLt and nothing else, checks every argument, and says on stderr what is wrong with one ("stand-in cuBLASLt:
 * …"; the call returns CUBLAS_STATUS_INVALID_VALUE then).
 *
 *     cc -O2 -shared -fPIC -Wl,-soname,libcublasLt.so.13 -o libcublasLt.so.13 stand_in_cublas_lt.c -ldl -lm
 *
 *     STAND_IN_CUBLAS_LT_MOST=<n>      products of more than n multiplications are checked and counted, not computed
 *     STAND_IN_CUBLAS_LT_FAULT=<call>  create, heuristic or matmul returns an error
 *
 * Beside counting_driver.c, a product is counted as the launch of a kernel "cublas_lt_matmul", and matrices and workspace have to be
 * in memory that the driver has given out. Sums are taken in f64 in the order of `inner`, so that a result has one rounding. Numbers are
 * cublasLt.h's; tests compare them with the header where it is. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int status;
enum { OK = 0, INVALID = 7, EXECUTION_FAILED = 13, INTERNAL = 14, NOT_SUPPORTED = 15 };
enum { COMPUTE_32F = 68, R_32F = 0, R_16F = 2, R_16BF = 14, OP_N = 0, OP_T = 1 };
enum { TRANSA = 3, TRANSB = 4 };
enum { MAX_WORKSPACE = 1, REDUCTION_MASK = 3, ALIGNMENT_A = 5, ALIGNMENT_D = 8 };
enum { REDUCTION_COMPUTE_TYPE = 2, ALIGNED = 256 };

enum { HANDLE = 0x4c74, OPERATION, LAYOUT, PREFERENCE, DESTROYED };
struct handle { int kind; };
struct operation { int kind; int32_t trans[2]; };
struct layout { int kind; int type; uint64_t rows, columns; int64_t leading; };
struct preference { int kind; uint64_t workspace; uint32_t mask, alignment[4]; };

/* An algorithm: what it was chosen for, and the memory that it needs. */
struct algorithm { uint64_t of_product, workspace, alignment[4], magic, unused; };
static const uint64_t MAGIC = 0x5354414e44494e4cull;
struct result { struct algorithm algorithm; size_t workspace; status state; float waves; int reserved[4]; };

static status wrong(const char *call, const char *what) {
    fprintf(stderr, "stand-in cuBLASLt: %s: not so: %s\n", call, what);
    return INVALID;
}

#define REQUIRE(holds) do { if (!(holds)) return wrong(__func__, #holds); } while (0)

static int faulty(const char *call) {
    const char *fault = getenv("STAND_IN_CUBLAS_LT_FAULT");
    return fault && !strcmp(fault, call);
}

static int is(const void *object, int kind) { return object && *(const int *)object == kind; }

size_t cublasLtGetVersion(void) { return 130000; }

const char *cublasLtGetStatusString(status error) {
    switch (error) {
        case OK: return "success";
        case INVALID: return "an unsupported value or parameter was passed to the function";
        case EXECUTION_FAILED: return "the function failed to launch on the GPU";
        case INTERNAL: return "an internal operation failed";
        case NOT_SUPPORTED: return "the functionality requested is not supported";
        default: return "unknown error";
    }
}

status cublasLtCreate(struct handle **made) {
    REQUIRE(made);
    if (faulty("create")) return 1;
    *made = malloc(sizeof **made);
    (*made)->kind = HANDLE;
    return OK;
}

status cublasLtMatmulDescCreate(struct operation **made, int compute, int scale) {
    REQUIRE(made && compute == COMPUTE_32F && scale == R_32F);
    *made = malloc(sizeof **made);
    **made = (struct operation){OPERATION, {OP_N, OP_N}};
    return OK;
}

status cublasLtMatmulDescSetAttribute(struct operation *of, int attribute, const void *value, size_t bytes) {
    REQUIRE(is(of, OPERATION) && value);
    REQUIRE(attribute == TRANSA || attribute == TRANSB);
    REQUIRE(bytes == sizeof(int32_t));
    int32_t trans = *(const int32_t *)value;
    REQUIRE(trans == OP_N || trans == OP_T);
    of->trans[attribute - TRANSA] = trans;
    return OK;
}

status cublasLtMatrixLayoutCreate(struct layout **made, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    REQUIRE(made && (type == R_32F || type == R_16F || type == R_16BF));
    REQUIRE(rows > 0 && columns > 0 && rows <= INT32_MAX && columns <= INT32_MAX && leading <= INT32_MAX);
    REQUIRE(leading >= (int64_t)rows);
    *made = malloc(sizeof **made);
    **made = (struct layout){LAYOUT, type, rows, columns, leading};
    return OK;
}

status cublasLtMatmulPreferenceCreate(struct preference **made) {
    REQUIRE(made);
    *made = malloc(sizeof **made);
    **made = (struct preference){PREFERENCE, 0, 7, {ALIGNED, ALIGNED, ALIGNED, ALIGNED}};
    return OK;
}

status cublasLtMatmulPreferenceSetAttribute(struct preference *of, int attribute, const void *value, size_t bytes) {
    REQUIRE(is(of, PREFERENCE) && value);
    if (attribute == MAX_WORKSPACE) {
        REQUIRE(bytes == sizeof(uint64_t));
        of->workspace = *(const uint64_t *)value;
        return OK;
    }
    REQUIRE(bytes == sizeof(uint32_t));
    uint32_t number = *(const uint32_t *)value;
    if (attribute == REDUCTION_MASK) {
        of->mask = number;
        return OK;
    }
    REQUIRE(attribute >= ALIGNMENT_A && attribute <= ALIGNMENT_D);
    REQUIRE(number > 0 && number <= ALIGNED && !(number & (number - 1)));
    of->alignment[attribute - ALIGNMENT_A] = number;
    return OK;
}

static status destroy(void *object, int kind) {
    REQUIRE(is(object, kind));
    *(int *)object = DESTROYED;
    free(object);
    return OK;
}
status cublasLtMatmulDescDestroy(void *operation) { return destroy(operation, OPERATION); }
status cublasLtMatrixLayoutDestroy(void *layout) { return destroy(layout, LAYOUT); }
status cublasLtMatmulPreferenceDestroy(void *preference) { return destroy(preference, PREFERENCE); }

static size_t size_of(int type) { return type == R_32F ? 4 : 2; }

/* Whether the shapes belong together; `inner` is written. */
static status check(const struct operation *operation, const struct layout *a, const struct layout *b, const struct layout *c,
                    const struct layout *d, uint64_t *inner) {
    REQUIRE(is(operation, OPERATION));
    REQUIRE(is(a, LAYOUT) && is(b, LAYOUT) && is(c, LAYOUT) && is(d, LAYOUT));
    REQUIRE(a->type == b->type && a->type == c->type && a->type == d->type);
    int ta = operation->trans[0] == OP_T, tb = operation->trans[1] == OP_T;
    *inner = ta ? a->rows : a->columns;
    REQUIRE(*inner == (tb ? b->columns : b->rows));
    REQUIRE(d->rows == (ta ? a->columns : a->rows));
    REQUIRE(d->columns == (tb ? b->rows : b->columns));
    REQUIRE(c->rows == d->rows && c->columns == d->columns && c->leading == d->leading);
    return OK;
}

/* A number that another product has not. */
static uint64_t hash(const struct operation *operation, const struct layout *const *layouts) {
    uint64_t hash = 14695981039346656037ull;
    uint64_t values[2 + 4 * 4], *value = values;
    *value++ = (uint64_t)operation->trans[0];
    *value++ = (uint64_t)operation->trans[1];
    for (int i = 0; i < 4; i++) {
        *value++ = (uint64_t)layouts[i]->type;
        *value++ = layouts[i]->rows;
        *value++ = layouts[i]->columns;
        *value++ = (uint64_t)layouts[i]->leading;
    }
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) hash = (hash ^ values[i]) * 1099511628211ull;
    return hash;
}

status cublasLtMatmulAlgoGetHeuristic(const struct handle *handle, const struct operation *operation, const struct layout *a,
                                      const struct layout *b, const struct layout *c, const struct layout *d,
                                      const struct preference *preference, int wanted, struct result *results, int *count) {
    REQUIRE(is(handle, HANDLE) && is(preference, PREFERENCE) && results && count);
    REQUIRE(wanted == 1);
    /* Repeats bit for bit: parts of sums in f32, or no parts. */
    REQUIRE(preference->mask == REDUCTION_COMPUTE_TYPE);
    uint64_t inner;
    status checked = check(operation, a, b, c, d, &inner);
    if (checked != OK) return checked;
    if (faulty("heuristic")) return NOT_SUPPORTED;
    const struct layout *layouts[] = {a, b, c, d};
    memset(results, 0, sizeof *results);
    struct algorithm *chosen = &results->algorithm;
    chosen->of_product = hash(operation, layouts);
    chosen->magic = MAGIC;
    for (int i = 0; i < 4; i++) {
        chosen->alignment[i] = preference->alignment[i];
        REQUIRE(preference->alignment[i] >= size_of(layouts[i]->type));
    }
    /* As an algorithm that splits long sums would. */
    uint64_t parts = inner > 4 * d->rows && inner > 4 * d->columns ? 4 * d->rows * d->columns * sizeof(float) : 0;
    chosen->workspace = parts <= preference->workspace ? parts : 0;
    results->workspace = chosen->workspace;
    results->state = OK;
    results->waves = 1.0f;
    *count = 1;
    return OK;
}

static double half(uint16_t bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double value = exponent == 0 ? ldexp(fraction, -24) : exponent == 31 ? (fraction ? NAN : INFINITY) : ldexp(1024 + fraction, exponent - 25);
    return bits >> 15 ? -value : value;
}

static double value(const void *at, size_t index, int type) {
    if (type == R_32F) return ((const float *)at)[index];
    uint16_t bits = ((const uint16_t *)at)[index];
    if (type == R_16F) return half(bits);
    uint32_t whole = (uint32_t)bits << 16;
    float number;
    memcpy(&number, &whole, sizeof number);
    return number;
}

static uint16_t to_half(float number) {
    if (isnan(number)) return 0x7e00;
    uint16_t sign = signbit(number) ? 0x8000 : 0;
    double size = fabs(number);
    if (size >= 65520.0) return sign | 0x7c00;
    int exponent = 0;
    frexp(size, &exponent); /* size is below 2^exponent */
    if (exponent < -13) exponent = -13;
    long units = lrint(ldexp(size, 11 - exponent)); /* ties to even */
    if (units == 2048) { units = 1024; exponent++; }
    return sign | (uint16_t)(units < 1024 ? units : (long)(exponent + 13) * 1024 + units);
}

static void put(void *at, size_t index, int type, double sum) {
    float number = (float)sum;
    if (type == R_32F) {
        ((float *)at)[index] = number;
        return;
    }
    uint16_t bits = to_half(number);
    if (type == R_16BF) {
        uint32_t whole;
        memcpy(&whole, &number, sizeof whole);
        bits = isnan(number) ? 0x7fc0 : (uint16_t)((whole + 0x7fff + (whole >> 16 & 1)) >> 16);
    }
    ((uint16_t *)at)[index] = bits;
}

/* counting_driver.c, where it is loaded. */
typedef void (*launched_type)(const char *);
typedef int (*holds_type)(uint64_t, size_t);
static void *of_driver(const char *name) {
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    return driver ? dlsym(driver, name) : NULL;
}

static size_t extent(const struct layout *of) {
    return ((of->columns - 1) * (size_t)of->leading + of->rows) * size_of(of->type);
}

status cublasLtMatmul(const struct handle *handle, const struct operation *operation, const float *alpha, const void *a,
                      const struct layout *la, const void *b, const struct layout *lb, const float *beta, const void *c,
                      const struct layout *lc, void *d, const struct layout *ld, const struct algorithm *algorithm, void *workspace,
                      size_t bytes, void *stream) {
    REQUIRE(is(handle, HANDLE) && alpha && beta && a && b && d && algorithm && stream);
    REQUIRE(*alpha == 1.0f && *beta == 0.0f);
    uint64_t inner;
    status checked = check(operation, la, lb, lc, ld, &inner);
    if (checked != OK) return checked;
    REQUIRE(c == d);
    const struct layout *layouts[] = {la, lb, lc, ld};
    REQUIRE(algorithm->magic == MAGIC && algorithm->of_product == hash(operation, layouts));
    const void *matrices[] = {a, b, c, d};
    for (int i = 0; i < 4; i++) REQUIRE((uintptr_t)matrices[i] % algorithm->alignment[i] == 0);
    REQUIRE(bytes >= algorithm->workspace);
    REQUIRE(algorithm->workspace == 0 || (workspace && (uintptr_t)workspace % ALIGNED == 0));
    uintptr_t first = (uintptr_t)d, end = first + extent(ld);
    REQUIRE(((uintptr_t)a >= end || (uintptr_t)a + extent(la) <= first));
    REQUIRE(((uintptr_t)b >= end || (uintptr_t)b + extent(lb) <= first));
    holds_type holds = (holds_type)of_driver("counting_driver_holds");
    if (holds) {
        for (int i = 0; i < 4; i++) REQUIRE(holds((uintptr_t)matrices[i], extent(layouts[i])));
        REQUIRE(!workspace || holds((uintptr_t)workspace, bytes));
    }
    if (faulty("matmul")) return EXECUTION_FAILED;
    launched_type launched = (launched_type)of_driver("counting_driver_launched");
    if (launched) launched("cublas_lt_matmul");
    /* The parts of sums are written there. */
    if (workspace && bytes <= 1 << 20) memset(workspace, 0xff, bytes);
    const char *most = getenv("STAND_IN_CUBLAS_LT_MOST");
    if (most && (double)ld->rows * (double)ld->columns * (double)inner > atof(most)) return OK;
    int ta = operation->trans[0] == OP_T, tb = operation->trans[1] == OP_T;
    for (uint64_t column = 0; column < ld->columns; column++)
        for (uint64_t row = 0; row < ld->rows; row++) {
            double sum = 0;
            for (uint64_t k = 0; k < inner; k++) {
                size_t of_a = ta ? k + row * (size_t)la->leading : row + k * (size_t)la->leading;
                size_t of_b = tb ? column + k * (size_t)lb->leading : k + column * (size_t)lb->leading;
                sum += value(a, of_a, la->type) * value(b, of_b, lb->type);
            }
            put(d, row + column * (size_t)ld->leading, ld->type, sum);
        }
    return OK;
}

/* A libnvrtc.so.13 without a compiler: it takes any source, writes it to $RECORDING_NVRTC_SOURCES/<hash>.cu with the options as a
 * comment in the first line, and gives an empty module. For counting_driver.c, which runs no kernel: counting takes no time
 * to compile then and nothing of NVIDIA's. tests/gpu/kernels compiles what was written.
 *
 *     cc -O2 -shared -fPIC -Wl,-soname,libnvrtc.so.13 -o libnvrtc.so.13 recording_nvrtc.c */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int status;
enum { OK = 0 };
struct program { char *source; };

status nvrtcVersion(int *major, int *minor) { *major = 13; *minor = 0; return OK; }
const char *nvrtcGetErrorString(status error) { return "an error of the recording NVRTC"; }

status nvrtcCreateProgram(struct program **made, const char *source, const char *name, int headers, const char *const *contents,
                          const char *const *names) {
    *made = malloc(sizeof **made);
    (*made)->source = strdup(source);
    return OK;
}

status nvrtcDestroyProgram(struct program **program) {
    free((*program)->source);
    free(*program);
    *program = NULL;
    return OK;
}

status nvrtcCompileProgram(struct program *program, int count, const char *const *options) {
    const char *folder = getenv("RECORDING_NVRTC_SOURCES");
    if (!folder) return OK;
    uint64_t hash = 14695981039346656037ull;
    for (const char *c = program->source; *c; c++) hash = (hash ^ (unsigned char)*c) * 1099511628211ull;
    char path[4096], new_path[4096];
    snprintf(path, sizeof path, "%s/%016llx.cu", folder, (unsigned long long)hash);
    snprintf(new_path, sizeof new_path, "%s.%d", path, getpid());
    FILE *file = fopen(new_path, "w");
    if (!file) return OK;
    fputs("//", file);
    for (int i = 0; i < count; i++)
        if (strncmp(options[i], "--include-path", 14)) fprintf(file, " %s", options[i]);
    fprintf(file, "\n%s", program->source);
    fclose(file);
    rename(new_path, path);
    return OK;
}

static status text(char *to) { *to = 0; return OK; }
static status size(size_t *bytes) { *bytes = 1; return OK; }
status nvrtcGetPTXSize(struct program *program, size_t *bytes) { return size(bytes); }
status nvrtcGetPTX(struct program *program, char *to) { return text(to); }
status nvrtcGetProgramLogSize(struct program *program, size_t *bytes) { return size(bytes); }
status nvrtcGetProgramLog(struct program *program, char *to) { return text(to); }

/* A disk that fails: calls on paths with $FAULT_PATH in them return -1 with errno $FAULT_ERRNO.
 *
 * Preloaded (LD_PRELOAD). $FAULT_CALL names the one call that fails: open, read, write, fsync, rename, stat or list.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int fails(const char *call, const char *path) {
    const char *wanted = getenv("FAULT_CALL"), *part = getenv("FAULT_PATH"), *number = getenv("FAULT_ERRNO");
    if (!wanted || !part || !number || !path || strcmp(call, wanted) || !strstr(path, part)) return 0;
    errno = atoi(number);
    return 1;
}

static int fails_of(const char *call, int descriptor) {
    char link[64], path[4096];
    const char *wanted = getenv("FAULT_CALL");
    if (!wanted || strcmp(call, wanted)) return 0;
    int kept = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = kept;
    if (length < 0) return 0;
    path[length] = 0;
    return fails(call, path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int opened(const char *name, const char *path, int flags, mode_t mode) {
    int (*next)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, name);
    return fails("open", path) ? -1 : next(path, flags, mode);
}

#define OPEN(name)                                   \
    int name(const char *path, int flags, ...) {     \
        va_list more;                                \
        va_start(more, flags);                       \
        mode_t mode = va_arg(more, int);             \
        va_end(more);                                \
        return opened(#name, path, flags, mode);     \
    }
OPEN(open)
OPEN(open64)

ssize_t read(int file, void *to, size_t n) { return fails_of("read", file) ? -1 : NEXT(read)(file, to, n); }
ssize_t pread64(int file, void *to, size_t n, off64_t at) {
    return fails_of("read", file) ? -1 : NEXT(pread64)(file, to, n, at);
}
ssize_t write(int file, const void *from, size_t n) { return fails_of("write", file) ? -1 : NEXT(write)(file, from, n); }
int fsync(int file) { return fails_of("fsync", file) ? -1 : NEXT(fsync)(file); }
int rename(const char *from, const char *to) { return fails("rename", to) ? -1 : NEXT(rename)(from, to); }
int stat(const char *path, struct stat *to) { return fails("stat", path) ? -1 : NEXT(stat)(path, to); }
int stat64(const char *path, struct stat64 *to) { return fails("stat", path) ? -1 : NEXT(stat64)(path, to); }
int fstatat64(int folder, const char *path, struct stat64 *to, int flags) {
    return fails("stat", path) ? -1 : NEXT(fstatat64)(folder, path, to, flags);
}
DIR *opendir(const char *path) { return fails("list", path) ? NULL : NEXT(opendir)(path); }

/* Disturbs one call of a process that changes files below a directory; loaded with LD_PRELOAD.
 *
 * torture_arm(root, nth, mode, count): from now on the calls that change something below `root` are counted in count[0],
 * those of them that go to an open file in count[1] too; the nth, from 1, is disturbed. Each is one that libc makes for
 * the program, SQLite and FAISS alike.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { KILL, KILL_HALFWAY, FAIL_EIO, FAIL_EIO_ON, FAIL_ENOSPC, FAIL_ENOSPC_ON };

static char root[PATH_MAX];
static size_t root_length;
static int nth, mode;
static volatile int *count;

void torture_arm(const char *directory, int which, int how, volatile int *counter) {
    strncpy(root, directory, sizeof root - 1);
    root_length = strlen(root);
    nth = which;
    mode = how;
    count = counter;
}

static int below(const char *path) {
    return strncmp(path, root, root_length) == 0 && (path[root_length] == 0 || path[root_length] == '/');
}

static int is_open_below(int descriptor) {
    char link[64], path[PATH_MAX];
    int saved = errno;
    if (!count) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t n = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (n < 0) return 0;
    path[n] = 0;
    return below(path);
}

static int is_ours(int descriptor) {
    int ours = is_open_below(descriptor);
    if (ours) ++count[1];
    return ours;
}

static int is_ours_at(int directory, const char *path) {
    if (!count) return 0;
    return path[0] == '/' ? below(path) : directory != AT_FDCWD && is_open_below(directory);
}

/* What becomes of a call: 0 it runs; 1 half of it runs, then the process dies; 2 half of it runs; -1 it fails. */
static int disturb(int needs_room) {
    int now = ++*count;
    if (now < nth) return 0;
    int first = now == nth;
    switch (mode) {
    case KILL: if (first) kill(getpid(), SIGKILL); return 0;
    case KILL_HALFWAY: return first;
    case FAIL_EIO: if (!first) return 0; errno = EIO; return -1;
    case FAIL_EIO_ON: errno = EIO; return -1;
    case FAIL_ENOSPC: if (!first) return 0; errno = ENOSPC; return -1;
    case FAIL_ENOSPC_ON: /* a full disk still takes what needs no room */
        if (!needs_room) return 0;
        if (first) return 2;
        errno = ENOSPC;
        return -1;
    }
    return 0;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* Half of what has no half is all of it: the process then dies between this call and the next. */
#define DISTURBED(ours, needs_room, call) do { \
        if (ours) { \
            int fate = disturb(needs_room); \
            if (fate < 0) return -1; \
            if (fate == 1) { (void)!(call); kill(getpid(), SIGKILL); } \
        } \
        return call; \
    } while (0)

#define WRITTEN(ours, n, whole, half) do { \
        if (ours) { \
            int fate = disturb(1); \
            if (fate < 0) return -1; \
            if (fate == 1) { (void)!(half); kill(getpid(), SIGKILL); } \
            if (fate == 2 && (n) > 1) return half; \
        } \
        return whole; \
    } while (0)

ssize_t write(int d, const void *b, size_t n) {
    REAL(write);
    WRITTEN(is_ours(d), n, real(d, b, n), real(d, b, n / 2));
}
ssize_t pwrite(int d, const void *b, size_t n, off_t o) {
    REAL(pwrite);
    WRITTEN(is_ours(d), n, real(d, b, n, o), real(d, b, n / 2, o));
}
ssize_t pwrite64(int d, const void *b, size_t n, off64_t o) {
    REAL(pwrite64);
    WRITTEN(is_ours(d), n, real(d, b, n, o), real(d, b, n / 2, o));
}
ssize_t writev(int d, const struct iovec *v, int n) { REAL(writev); DISTURBED(is_ours(d), 1, real(d, v, n)); }
ssize_t sendfile(int to, int of, off_t *o, size_t n) {
    static ssize_t (*real)(int, int, off_t *, size_t);
    if (!real) real = (ssize_t (*)(int, int, off_t *, size_t))dlsym(RTLD_NEXT, "sendfile");
    DISTURBED(is_ours(to), 1, real(to, of, o, n));
}
ssize_t sendfile64(int to, int of, off64_t *o, size_t n) {
    static ssize_t (*real)(int, int, off64_t *, size_t);
    if (!real) real = (ssize_t (*)(int, int, off64_t *, size_t))dlsym(RTLD_NEXT, "sendfile64");
    DISTURBED(is_ours(to), 1, real(to, of, o, n));
}
ssize_t copy_file_range(int of, off64_t *p, int to, off64_t *q, size_t n, unsigned f) {
    REAL(copy_file_range);
    DISTURBED(is_ours(to), 1, real(of, p, to, q, n, f));
}
int ftruncate(int d, off_t n) { REAL(ftruncate); DISTURBED(is_ours(d), 0, real(d, n)); }
int ftruncate64(int d, off64_t n) { REAL(ftruncate64); DISTURBED(is_ours(d), 0, real(d, n)); }
int fsync(int d) { REAL(fsync); DISTURBED(is_ours(d), 0, real(d)); }
int fdatasync(int d) { REAL(fdatasync); DISTURBED(is_ours(d), 0, real(d)); }
int fallocate(int d, int m, off_t o, off_t n) { REAL(fallocate); DISTURBED(is_ours(d), 1, real(d, m, o, n)); }
int rename(const char *a, const char *b) { REAL(rename); DISTURBED(is_ours_at(AT_FDCWD, b), 1, real(a, b)); }
int renameat(int p, const char *a, int q, const char *b) {
    REAL(renameat);
    DISTURBED(is_ours_at(q, b), 1, real(p, a, q, b));
}
int renameat2(int p, const char *a, int q, const char *b, unsigned f) {
    REAL(renameat2);
    DISTURBED(is_ours_at(q, b), 1, real(p, a, q, b, f));
}
int unlink(const char *p) { REAL(unlink); DISTURBED(is_ours_at(AT_FDCWD, p), 0, real(p)); }
int unlinkat(int d, const char *p, int f) { REAL(unlinkat); DISTURBED(is_ours_at(d, p), 0, real(d, p, f)); }
int rmdir(const char *p) { REAL(rmdir); DISTURBED(is_ours_at(AT_FDCWD, p), 0, real(p)); }
int mkdir(const char *p, mode_t m) { REAL(mkdir); DISTURBED(is_ours_at(AT_FDCWD, p), 1, real(p, m)); }
int mkdirat(int d, const char *p, mode_t m) { REAL(mkdirat); DISTURBED(is_ours_at(d, p), 1, real(d, p, m)); }

/* Opening counts when it may make a file. */
#define OPENED(ours, flags, call) do { \
        int bits = 0; \
        if ((flags) & (O_CREAT | O_TMPFILE)) { va_list a; va_start(a, flags); bits = va_arg(a, int); va_end(a); } \
        DISTURBED(((flags) & O_CREAT) && (ours), 1, call); \
    } while (0)
int open(const char *p, int f, ...) { REAL(open); OPENED(is_ours_at(AT_FDCWD, p), f, real(p, f, bits)); }
int open64(const char *p, int f, ...) {
    REAL(open64);
    OPENED(is_ours_at(AT_FDCWD, p), f, real(p, f, bits));
}
int openat(int d, const char *p, int f, ...) { REAL(openat); OPENED(is_ours_at(d, p), f, real(d, p, f, bits)); }
int openat64(int d, const char *p, int f, ...) {
    REAL(openat64);
    OPENED(is_ours_at(d, p), f, real(d, p, f, bits));
}

/*
 * Preloaded into a subprocess of a test: records what the process does to the files below one folder, in the
 * order in which it happened, and lets the disk fail on request. Linux with glibc.
 *
 *   DISK_ROOT     the folder
 *   DISK_TRACE    where records are appended; nothing is recorded without it
 *   DISK_MARKS    a file; what the program writes to it becomes a mark in the trace
 *   DISK_KILL_AT  the process is killed instead of doing its n-th recorded operation
 *   DISK_FAULTS   a folder; while a file of that name is in it, below DISK_ROOT
 *                   fsync-eio       every sync fails with EIO
 *                   fsync-eio-once  one sync fails with EIO; the file is removed by that
 *                   fsync-eio-last  the same, and where DISK_KILL_AT is set the process gets no further
 *                   fsync-slow      every sync takes 300 ms
 *                   write-enospc    every write fails with ENOSPC
 *
 * A record: one byte of kind, then path length (2 bytes), offset (8), data length (4), in the machine's own
 * order, then path and data. Kinds: W write, T truncate (offset is the size), S sync, E failed sync, C create,
 * R rename (data is the new path), U unlink, M mark.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define SLOW_SYNC_NS 300000000L

static int (*real_open)(const char *, int, ...);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static int (*real_ftruncate)(int, off_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_rename)(const char *, const char *);
static int (*real_unlink)(const char *);

static const char *root, *marks, *faults;
static int trace = -1;
static struct stat traced;
static long kill_at;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void open_trace(void)
{
    if (getenv("DISK_TRACE"))
        trace = real_open(getenv("DISK_TRACE"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (trace >= 0 && fstat(trace, &traced))
        abort();
}

/* A program that closes all descriptors has closed ours, and may use its number for something else. */
static void keep_trace(void)
{
    struct stat now;

    if (fstat(trace, &now) || now.st_dev != traced.st_dev || now.st_ino != traced.st_ino)
        open_trace();
}

__attribute__((constructor)) static void start(void)
{
    real_open = dlsym(RTLD_NEXT, "open");
    real_write = dlsym(RTLD_NEXT, "write");
    real_writev = dlsym(RTLD_NEXT, "writev");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_rename = dlsym(RTLD_NEXT, "rename");
    real_unlink = dlsym(RTLD_NEXT, "unlink");
    root = getenv("DISK_ROOT");
    marks = getenv("DISK_MARKS");
    faults = getenv("DISK_FAULTS");
    kill_at = getenv("DISK_KILL_AT") ? atol(getenv("DISK_KILL_AT")) : 0;
    open_trace();
}

static int is_below(const char *path)
{
    size_t length = root ? strlen(root) : 0;
    return length && !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

/* The path behind a descriptor; empty when it is none of ours. */
static const char *path_of(int fd, char *path)
{
    char link[40];
    ssize_t length;
    int saved = errno;

    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = root ? readlink(link, path, PATH_MAX - 1) : -1;
    path[length > 0 ? length : 0] = 0;
    if (!is_below(path) && !(marks && !strcmp(path, marks)))
        path[0] = 0;
    errno = saved;
    return path;
}

static int fault_is_on(const char *name, int once)
{
    char path[PATH_MAX];
    int saved = errno, on;

    if (!faults)
        return 0;
    snprintf(path, sizeof path, "%s/%s", faults, name);
    on = once ? !real_unlink(path) : !access(path, F_OK);
    errno = saved;
    return on;
}

static void die_if_due(void)
{
    if (kill_at && !--kill_at)
        raise(SIGKILL);
}

static void record(char kind, const char *path, long long offset, const void *data, size_t length)
{
    unsigned short path_length = strlen(path);
    unsigned int data_length = length;
    char head[15];
    struct iovec parts[3] = {{head, sizeof head}, {(void *)path, path_length}, {(void *)data, length}};
    int saved = errno;

    if (trace < 0)
        return;
    keep_trace();
    head[0] = kind;
    memcpy(head + 1, &path_length, 2);
    memcpy(head + 3, &offset, 8);
    memcpy(head + 11, &data_length, 4);
    if (real_writev(trace, parts, 3) != (ssize_t)(sizeof head + path_length + length))
        abort();
    errno = saved;
}

static int open_traced(const char *path, int flags, mode_t mode)
{
    struct stat found;
    int is_new, fd;

    if (!is_below(path) || !(flags & O_CREAT))
        return real_open(path, flags, mode);
    pthread_mutex_lock(&lock);
    die_if_due();
    is_new = lstat(path, &found) != 0;
    fd = real_open(path, flags, mode);
    if (fd >= 0 && is_new)
        record('C', path, 0, "", 0);
    pthread_mutex_unlock(&lock);
    return fd;
}

#define MODE_OF(flags, mode) \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }

int open(const char *path, int flags, ...)
{
    mode_t mode = 0;
    MODE_OF(flags, mode)
    return open_traced(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    mode_t mode = 0;
    MODE_OF(flags, mode)
    return open_traced(path, flags | O_LARGEFILE, mode);
}

/* One write at *offset*, or at the descriptor's own position when that is negative. */
static ssize_t write_traced(int fd, const void *data, size_t length, off_t offset)
{
    char path[PATH_MAX];
    ssize_t done;

    if (fd == trace || !*path_of(fd, path))
        return offset < 0 ? real_write(fd, data, length) : real_pwrite(fd, data, length, offset);
    pthread_mutex_lock(&lock);
    if (marks && !strcmp(path, marks)) {
        record('M', path, 0, data, length);
        pthread_mutex_unlock(&lock);
        return length;
    }
    if (fault_is_on("write-enospc", 0)) {
        pthread_mutex_unlock(&lock);
        errno = ENOSPC;
        return -1;
    }
    die_if_due();
    if (offset < 0) {
        done = real_write(fd, data, length);
        offset = lseek(fd, 0, SEEK_CUR) - (done > 0 ? done : 0);
    } else
        done = real_pwrite(fd, data, length, offset);
    if (done > 0)
        record('W', path, offset, data, done);
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t write(int fd, const void *data, size_t length) { return write_traced(fd, data, length, -1); }
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) { return write_traced(fd, data, length, offset); }
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) { return write_traced(fd, data, length, offset); }

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    char path[PATH_MAX];
    ssize_t total = 0, done;
    int i;

    if (!*path_of(fd, path))
        return real_writev(fd, parts, count);
    for (i = 0; i < count; i++) {
        done = write_traced(fd, parts[i].iov_base, parts[i].iov_len, -1);
        if (done < 0)
            return total ? total : -1;
        total += done;
        if ((size_t)done < parts[i].iov_len)
            break;
    }
    return total;
}

static int truncate_traced(int fd, off_t size)
{
    char path[PATH_MAX];
    int failed;

    if (!*path_of(fd, path))
        return real_ftruncate(fd, size);
    pthread_mutex_lock(&lock);
    die_if_due();
    failed = real_ftruncate(fd, size);
    if (!failed)
        record('T', path, size, "", 0);
    pthread_mutex_unlock(&lock);
    return failed;
}

int ftruncate(int fd, off_t size) { return truncate_traced(fd, size); }
int ftruncate64(int fd, off64_t size) { return truncate_traced(fd, size); }

/* The lock is held over the sync when it is recorded, so that a write stands on the right side of it. */
static int sync_traced(int fd, int (*real)(int))
{
    struct timespec pause = {0, SLOW_SYNC_NS};
    char path[PATH_MAX];
    int failed, is_last;

    if (!*path_of(fd, path))
        return real(fd);
    if (fault_is_on("fsync-slow", 0))
        nanosleep(&pause, NULL);
    pthread_mutex_lock(&lock);
    die_if_due();
    is_last = fault_is_on("fsync-eio-last", 1);
    if (is_last && kill_at)
        kill_at = 1;
    if (is_last || fault_is_on("fsync-eio", 0) || fault_is_on("fsync-eio-once", 1)) {
        record('E', path, 0, "", 0);
        errno = EIO;
        failed = -1;
    } else {
        failed = real(fd);
        record(failed ? 'E' : 'S', path, 0, "", 0);
    }
    pthread_mutex_unlock(&lock);
    return failed;
}

int fsync(int fd) { return sync_traced(fd, real_fsync); }
int fdatasync(int fd) { return sync_traced(fd, real_fdatasync); }

int rename(const char *from, const char *to)
{
    int failed;

    if (!is_below(from))
        return real_rename(from, to);
    pthread_mutex_lock(&lock);
    die_if_due();
    failed = real_rename(from, to);
    if (!failed)
        record('R', from, 0, to, strlen(to));
    pthread_mutex_unlock(&lock);
    return failed;
}

int unlink(const char *path)
{
    int failed;

    if (!is_below(path))
        return real_unlink(path);
    pthread_mutex_lock(&lock);
    die_if_due();
    failed = real_unlink(path);
    if (!failed)
        record('U', path, 0, "", 0);
    pthread_mutex_unlock(&lock);
    return failed;
}

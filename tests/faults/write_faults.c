/* Faults at the writes of a process, put before the C library by LD_PRELOAD; Linux only.
 *
 * Every call that changes something below one folder is a numbered write point. A file that the test maps as well says
 * at which point what happens: an error once or from then on, SIGKILL before the call or in the middle of a write,
 * SIGSTOP, another signal. The file is shared by all processes that inherit the environment, and so is the count.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum action { NOTHING, ERROR_ONCE, ERROR_ON, KILL, KILL_HALF_WAY, RAISE };
enum call { OPEN, WRITE, FSYNC, RENAME, LINK, MKDIR, TRUNCATE, REMOVE, CHMOD };
static const char *const NAMES[] = {"open", "write", "fsync", "rename", "link", "mkdir", "truncate", "remove", "chmod"};

struct plan { /* `Plan` in write_faults.py packs the same */
  int64_t count, at, action, number, slow_microseconds, struck;
  char where[512], root[1024];
};
static struct plan *plan;

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

__attribute__((constructor)) static void attach(void) {
  const char *path = getenv("WRITE_FAULTS");
  int file = path ? REAL(open)(path, O_RDWR | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *mapped = mmap(NULL, sizeof *plan, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (mapped != MAP_FAILED) plan = mapped;
  close(file);
}

/* The absolute path of a name, or an empty text. */
static void resolve(int folder, const char *name, char *out) {
  char base[PATH_MAX] = "", link[64];
  if (name[0] != '/') {
    snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
    ssize_t size = readlink(link, base, sizeof base - 1);
    base[size < 0 ? 0 : size] = 0;
  }
  if (snprintf(out, PATH_MAX, "%s%s%s", base, name[0] == '/' ? "" : "/", name) >= PATH_MAX) out[0] = 0;
}

static int below(const char *path) {
  size_t size = plan ? strlen(plan->root) : 0;
  return size && !strncmp(path, plan->root, size) && path[size] == '/';
}

static int there(const char *path) {
  struct stat seen;
  return !lstat(path, &seen);
}

/* Whether a file system in this trouble refuses this call. */
static int refuses(int number, enum call call, int is_new) {
  if (number == EROFS) return call != WRITE && call != FSYNC;
  if (number == EIO) return call == WRITE || call == FSYNC || call == RENAME;
  return call == WRITE || call == LINK || call == MKDIR || (call == OPEN && is_new);
}

/* Count a write point and do what is to happen there; true if the call must fail, with errno set. */
static int strikes(enum call call, const char *path, int is_new, int *half) {
  int64_t point = __atomic_add_fetch(&plan->count, 1, __ATOMIC_SEQ_CST), action = plan->action;
  if (call == FSYNC && plan->slow_microseconds) usleep(plan->slow_microseconds);
  if (action == NOTHING || point < plan->at || (action != ERROR_ON && plan->struck)) return 0;
  int is_error = action == ERROR_ONCE || action == ERROR_ON;
  if (is_error && !refuses(plan->number, call, is_new)) return 0;
  if (action == KILL_HALF_WAY && call != WRITE) return 0;
  if (__atomic_fetch_add(&plan->struck, 1, __ATOMIC_SEQ_CST) && action != ERROR_ON) return 0;
  if (plan->struck == 1) snprintf(plan->where, sizeof plan->where, "%s %s", NAMES[call], path + strlen(plan->root));
  if (action == KILL) kill(getpid(), SIGKILL);
  if (action == RAISE) kill(getpid(), plan->number);
  if (action == KILL_HALF_WAY) *half = 1;
  if (is_error) errno = plan->number;
  return is_error;
}

static int refused(enum call call, int folder, const char *name, int is_new_name) {
  char path[PATH_MAX];
  int half = 0;
  if (!plan) return 0;
  resolve(folder, name, path);
  if (!below(path)) return 0;
  int exists = there(path);
  if (is_new_name && exists) return 0; /* EEXIST is said before any other trouble */
  if (call == REMOVE && !exists) return 0;
  return strikes(call, path, !exists, &half);
}

static int refused_file(enum call call, int file, int *half) {
  char link[64], path[PATH_MAX];
  if (!plan) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t size = readlink(link, path, sizeof path - 1);
  path[size < 0 ? 0 : size] = 0;
  return below(path) && strikes(call, path, 0, half);
}

static int opens_to_write(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)); }

#define OPENS(NAME, FOLDER, ...)                                                  \
  int mode = 0;                                                                   \
  va_list rest;                                                                   \
  va_start(rest, flags);                                                          \
  if (flags & (O_CREAT | O_TMPFILE)) mode = va_arg(rest, int);                    \
  va_end(rest);                                                                   \
  if (opens_to_write(flags) && refused(OPEN, FOLDER, name, flags & O_EXCL)) return -1; \
  return REAL(NAME)(__VA_ARGS__, flags, mode);

int open(const char *name, int flags, ...) { OPENS(open, AT_FDCWD, name) }
int open64(const char *name, int flags, ...) { OPENS(open64, AT_FDCWD, name) }
int openat(int folder, const char *name, int flags, ...) { OPENS(openat, folder, folder, name) }
int openat64(int folder, const char *name, int flags, ...) { OPENS(openat64, folder, folder, name) }

ssize_t write(int file, const void *bytes, size_t size) {
  int half = 0;
  if (refused_file(WRITE, file, &half)) return -1;
  if (half) {
    REAL(write)(file, bytes, size / 2);
    kill(getpid(), SIGKILL);
  }
  return REAL(write)(file, bytes, size);
}

#define ON_FILE(TYPE, NAME, CALL, SIGNATURE, ...)        \
  TYPE NAME SIGNATURE {                                  \
    int half = 0;                                        \
    if (refused_file(CALL, file, &half)) return -1;      \
    return REAL(NAME)(__VA_ARGS__);                      \
  }
ON_FILE(int, fsync, FSYNC, (int file), file)
ON_FILE(int, fdatasync, FSYNC, (int file), file)
ON_FILE(int, ftruncate, TRUNCATE, (int file, off_t size), file, size)
ON_FILE(int, ftruncate64, TRUNCATE, (int file, off64_t size), file, size)
ON_FILE(int, fchmod, CHMOD, (int file, mode_t mode), file, mode)

#define ON_NAME(NAME, CALL, FOLDER, IS_NEW, SIGNATURE, ...)      \
  int NAME SIGNATURE {                                           \
    if (refused(CALL, FOLDER, name, IS_NEW)) return -1;          \
    return REAL(NAME)(__VA_ARGS__);                              \
  }
ON_NAME(mkdir, MKDIR, AT_FDCWD, 1, (const char *name, mode_t mode), name, mode)
ON_NAME(mkdirat, MKDIR, folder, 1, (int folder, const char *name, mode_t mode), folder, name, mode)
ON_NAME(unlink, REMOVE, AT_FDCWD, 0, (const char *name), name)
ON_NAME(unlinkat, REMOVE, folder, 0, (int folder, const char *name, int flags), folder, name, flags)
ON_NAME(rmdir, REMOVE, AT_FDCWD, 0, (const char *name), name)
ON_NAME(rename, RENAME, AT_FDCWD, 0, (const char *old, const char *name), old, name)
ON_NAME(link, LINK, AT_FDCWD, 1, (const char *old, const char *name), old, name)
ON_NAME(linkat, LINK, folder, 1, (int from, const char *old, int folder, const char *name, int flags), from, old, folder,
        name, flags)

/*
 * mass-launcher: forks processes that wait inside their group until they are told what to become.
 *
 *     mass-launcher PARENT_PID           (a SOCK_SEQPACKET socket on descriptor 3)
 *
 * Joining a cgroup takes 14 to 20 ms and exec half of one, so the agent has launchers made ahead of
 * time. This process is executed once and forks for each packet it is sent: 'P', then the paths of
 * the cgroup.procs files to join, each followed by NUL, and one socket beside them. It answers with an
 * int32, the pid or a negative errno, and ends when the agent closes its end. What it forks are
 * children of the agent (CLONE_PARENT), who waits for them.
 *
 * A forked launcher does everything slow first ("parking"), says READY on its own socket, and
 * blocks reading one request; then it opens the outputs, changes directory and execs. The parked
 * process itself becomes the task, so nothing of MASS stays in the task's group.
 *
 * Its answers, in order:
 *     'R'                      parked and ready
 *     'E'                      the request is accepted, exec comes next
 *     'F' errno(int32) step    a step failed; step is its name, up to the end of the stream
 * The socket is close-on-exec: end of stream after 'E' without 'F' means that exec succeeded. End
 * of stream before 'E' means that this process died and that nothing of the task ever ran.
 *
 * Exit codes: 0 dismissed (the agent closed its end), 126 a step before exec failed, 127 exec
 * failed. When the agent dies, the forking process and a parked launcher get SIGKILL (and read end
 * of stream), and a started task gets SIGKILL: PR_SET_PDEATHSIG outlives exec. The kernel ties that
 * signal to the *thread* that spawned this program, so the agent must do so from one that lives on.
 *
 * The request, in native byte order (both ends are one machine):
 *     uint32 magic, uint32 body_bytes
 *     uint32 argument_count, uint32 variable_count, uint32 rlimit_count
 *     rlimit_count x { uint32 resource, uint64 soft, uint64 hard }
 *     strings: directory, stdout, stderr, arguments, variables ("NAME=value"), each
 *              uint32 length, the bytes, one NUL (not counted in length)
 * Every length is checked against the body before it is used, and the body against its bound.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* close_range, environ, pwrite */
#endif

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SOCKET_FD 3
#define REQUEST_MAGIC 0x314c534dU          /* "MSL1" */
#define BODY_BYTES_MAX (2U * 1024U * 1024U) /* what Linux takes for argv + environment by default */
#define STRINGS_MAX 65536U                 /* arguments and variables together */
#define RLIMITS_MAX 16U                    /* Linux has 16 resources */
#define PATHS_BYTES_MAX 32768              /* eight paths of PATH_MAX */
#define KERNEL_SIGSET_BYTES 8UL           /* 64 signals on every Linux architecture but MIPS */
#define DESCRIPTORS_MAX 65536              /* closed one by one where close_range is missing */

enum { EXIT_STEP_FAILED = 126, EXIT_EXEC_FAILED = 127 };

typedef struct {
    const unsigned char *at;
    size_t left;
} cursor_t;

typedef struct {
    uint32_t resource;
    struct rlimit limit;
} resource_limit_t;

typedef struct {
    resource_limit_t limits[RLIMITS_MAX];
    uint32_t limit_count;
    char *directory;
    char *stdout_path;
    char *stderr_path;
    char **arguments;
    char **variables;
} request_t;

/* Send all of it; an agent that is gone makes the answer pointless, so failure only ends us. */
static void answer(const void *bytes, size_t count)
{
    const char *next = bytes;
    while (count > 0) {
        const ssize_t sent = send(SOCKET_FD, next, count, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) {
            continue;
        }
        if (sent <= 0) {
            _exit(EXIT_STEP_FAILED);
        }
        next += sent;
        count -= (size_t)sent;
    }
}

__attribute__((noreturn)) static void fail(const char *step, int error, int exit_code)
{
    const int32_t code = error;
    answer("F", 1);
    answer(&code, sizeof code);
    answer(step, strlen(step));
    _exit(exit_code);
}

__attribute__((noreturn)) static void fail_step(const char *step)
{
    fail(step, errno, EXIT_STEP_FAILED);
}

/* Read exactly count bytes; false on end of stream before the first one. */
static bool receive(void *into, size_t count)
{
    char *next = into;
    const size_t wanted = count;
    while (count > 0) {
        const ssize_t got = read(SOCKET_FD, next, count);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            fail_step("receive");
        }
        if (got == 0) {
            if (count == wanted) {
                return false;
            }
            fail("receive", EPIPE, EXIT_STEP_FAILED);
        }
        next += got;
        count -= (size_t)got;
    }
    return true;
}

/* ---- parking: everything that does not depend on the task ---- */

static void close_descriptors_above(int first)
{
#ifdef SYS_close_range
    if (syscall(SYS_close_range, (unsigned)first, ~0U, 0U) == 0) {
        return;
    }
#endif
    for (int descriptor = first; descriptor < DESCRIPTORS_MAX; descriptor++) {
        (void)close(descriptor);
    }
}

/* Python ignores SIGPIPE and an agent may block signals; both would be inherited by the task. */
static void reset_signals(void)
{
    /* glibc's posix_spawn leaves its two internal signals ignored, and its sigaction refuses to
     * touch them; hence the system call. All zero is SIG_DFL, no flags, no mask. */
    const unsigned long all_default[4] = {0};
    sigset_t none;
    for (int number = 1; number < NSIG; number++) {
        if (number != SIGKILL && number != SIGSTOP
            && syscall(SYS_rt_sigaction, number, all_default, NULL, KERNEL_SIGSET_BYTES) != 0) {
            fail_step("signals");
        }
    }
    if (sigemptyset(&none) != 0 || sigprocmask(SIG_SETMASK, &none, NULL) != 0) {
        fail_step("signals");
    }
}

static void die_with_parent(pid_t parent)
{
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) {
        fail_step("pdeathsig");
    }
    if (getppid() != parent) { /* it died before the line above could see it */
        _exit(0);
    }
}

/* An agent may run at a negative score to outlive its tasks; a task must not. A positive score
 * was chosen by whoever runs the agent and is kept. */
static void raise_oom_score(void)
{
    char text[16] = {0};
    const int file = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
    if (file < 0) {
        fail_step("oom_score_adj");
    }
    if (read(file, text, sizeof text - 1) <= 0) {
        fail_step("oom_score_adj");
    }
    if (text[0] == '-' && pwrite(file, "0", 1, 0) != 1) {
        fail_step("oom_score_adj");
    }
    (void)close(file);
}

/* Writing "0" moves the writer, whatever its pid is called in other namespaces. */
static void join_group(const char *procs_path)
{
    const int file = open(procs_path, O_WRONLY | O_CLOEXEC);
    if (file < 0 || write(file, "0", 1) != 1) {
        fail_step("join");
    }
    (void)close(file);
}

/* Put an open file, or what has become of opening it, in the place of a descriptor. */
static void put_at(const char *step, int descriptor, int file)
{
    if (file < 0 || dup2(file, descriptor) < 0) {
        fail_step(step);
    }
    if (file != descriptor) {
        (void)close(file);
    }
}

/* Do once what every forked launcher inherits. A step that fails ends this process; the agent learns
 * no more than that. */
static void prepare(pid_t parent)
{
    if (fcntl(SOCKET_FD, F_SETFD, FD_CLOEXEC) != 0) {
        _exit(EXIT_STEP_FAILED); /* there is nobody to tell */
    }
    close_descriptors_above(SOCKET_FD + 1);
    die_with_parent(parent);
    reset_signals();
    (void)setsid(); /* else Ctrl-C in the agent's terminal would end us */
    put_at("stdin", STDIN_FILENO, open("/dev/null", O_RDONLY | O_CLOEXEC));
}

static void park(pid_t parent, const char *paths, size_t count)
{
    die_with_parent(parent); /* not inherited */
    if (setsid() < 0) {
        fail_step("setsid");
    }
    raise_oom_score();
    for (size_t at = 0; at < count; at += strlen(paths + at) + 1U) {
        join_group(paths + at);
    }
}

/* ---- forking ---- */

/* A fork whose child is the agent's, not ours. All else is zero, in whatever order. */
static pid_t fork_beside(void)
{
#if defined(__s390__)
    return (pid_t)syscall(SYS_clone, 0UL, (unsigned long)CLONE_PARENT | SIGCHLD, 0UL, 0UL, 0UL);
#else
    return (pid_t)syscall(SYS_clone, (unsigned long)CLONE_PARENT | SIGCHLD, 0UL, 0UL, 0UL, 0UL);
#endif
}

/* Receive one packet with the socket beside it; -1 where there is none. Ends with the agent. */
static int receive_order(char *order, size_t *count)
{
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {.iov_base = order, .iov_len = PATHS_BYTES_MAX};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof control.bytes,
    };
    ssize_t got = 0;
    do {
        got = recvmsg(SOCKET_FD, &message, MSG_CMSG_CLOEXEC);
    } while (got < 0 && errno == EINTR);
    if (got <= 0) {
        _exit(0);
    }
    *count = (size_t)got;
    const struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    int channel = -1;
    if (head != NULL && head->cmsg_type == SCM_RIGHTS) {
        memcpy(&channel, CMSG_DATA(head), sizeof channel);
    }
    const bool whole = (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0;
    if (channel >= 0 && (!whole || order[0] != 'P' || (got > 1 && order[got - 1] != '\0'))) {
        (void)close(channel);
        channel = -1;
    }
    return channel;
}

/* Fork for each packet. Returns in the forked process only, with the paths it is to join. */
static size_t serve(char *order)
{
    for (;;) {
        size_t count = 0;
        const int channel = receive_order(order, &count);
        int32_t told = -EBADMSG;
        if (channel >= 0) {
            const pid_t pid = fork_beside();
            if (pid == 0) {
                if (dup3(channel, SOCKET_FD, O_CLOEXEC) < 0) {
                    _exit(EXIT_STEP_FAILED);
                }
                (void)close(channel);
                return count;
            }
            told = pid < 0 ? -errno : (int32_t)pid;
            (void)close(channel);
        }
        answer(&told, sizeof told);
    }
}

/* ---- the request ---- */

static void take(cursor_t *cursor, void *into, size_t count)
{
    if (cursor->left < count) {
        fail("request", EBADMSG, EXIT_STEP_FAILED);
    }
    memcpy(into, cursor->at, count);
    cursor->at += count;
    cursor->left -= count;
}

static uint32_t take_number(cursor_t *cursor)
{
    uint32_t number = 0;
    take(cursor, &number, sizeof number);
    return number;
}

/* Return the string in place; the body outlives every use of it. */
static char *take_string(cursor_t *cursor)
{
    const uint32_t length = take_number(cursor);
    char *string = (char *)(uintptr_t)cursor->at;
    if (cursor->left < 1 || length > cursor->left - 1 || string[length] != '\0'
        || memchr(string, '\0', length) != NULL) {
        fail("request", EBADMSG, EXIT_STEP_FAILED);
    }
    cursor->at += length + 1U;
    cursor->left -= length + 1U;
    return string;
}

static char **take_strings(cursor_t *cursor, uint32_t count)
{
    char **strings = calloc((size_t)count + 1U, sizeof *strings); /* ends with NULL */
    if (strings == NULL) {
        fail_step("request");
    }
    for (uint32_t index = 0; index < count; index++) {
        strings[index] = take_string(cursor);
    }
    return strings;
}

static resource_limit_t take_rlimit(cursor_t *cursor)
{
    resource_limit_t taken = {.resource = take_number(cursor)};
    uint64_t soft = 0;
    uint64_t hard = 0;
    take(cursor, &soft, sizeof soft);
    take(cursor, &hard, sizeof hard);
    taken.limit.rlim_cur = (rlim_t)soft;
    taken.limit.rlim_max = (rlim_t)hard;
    return taken;
}

/* Read the one request. Does not return when the agent dismisses us or the request is not sound. */
static request_t read_request(void)
{
    uint32_t head[2];
    if (!receive(head, sizeof head)) {
        _exit(0);
    }
    if (head[0] != REQUEST_MAGIC || head[1] > BODY_BYTES_MAX) {
        fail("request", EBADMSG, EXIT_STEP_FAILED);
    }
    unsigned char *body = malloc((size_t)head[1] + 1U);
    if (body == NULL) {
        fail_step("request");
    }
    if (!receive(body, head[1])) {
        fail("receive", EPIPE, EXIT_STEP_FAILED);
    }
    cursor_t cursor = {.at = body, .left = head[1]};
    const uint32_t argument_count = take_number(&cursor);
    const uint32_t variable_count = take_number(&cursor);
    const uint32_t rlimit_count = take_number(&cursor);
    if (argument_count < 1 || argument_count > STRINGS_MAX
        || variable_count > STRINGS_MAX - argument_count || rlimit_count > RLIMITS_MAX) {
        fail("request", EBADMSG, EXIT_STEP_FAILED);
    }
    request_t request = {.limit_count = rlimit_count};
    for (uint32_t index = 0; index < rlimit_count; index++) {
        request.limits[index] = take_rlimit(&cursor);
    }
    request.directory = take_string(&cursor);
    request.stdout_path = take_string(&cursor);
    request.stderr_path = take_string(&cursor);
    request.arguments = take_strings(&cursor, argument_count);
    request.variables = take_strings(&cursor, variable_count);
    if (cursor.left != 0) {
        fail("request", EBADMSG, EXIT_STEP_FAILED);
    }
    return request;
}

/* Make the directories above a path; whichever cannot be made shows when the path is opened. */
static void make_parents(char *path)
{
    for (char *slash = strchr(path + (path[0] == '/'), '/'); slash != NULL;
         slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        (void)mkdir(path, 0777);
        *slash = '/';
    }
}

/* Here and not in the agent, whom a dead network disk or a pipe without a reader would hold. */
static void open_output(const char *step, int descriptor, char *path)
{
    const int flags = O_WRONLY | O_APPEND | O_CREAT | O_NOCTTY | O_CLOEXEC;
    int file = open(path, flags, 0644);
    if (file < 0 && errno == ENOENT) {
        make_parents(path);
        file = open(path, flags, 0644);
    }
    put_at(step, descriptor, file);
}

__attribute__((noreturn)) static void become(const request_t *request)
{
    open_output("stdout", STDOUT_FILENO, request->stdout_path);
    if (strcmp(request->stdout_path, request->stderr_path) == 0) {
        if (dup2(STDOUT_FILENO, STDERR_FILENO) < 0) {
            fail_step("stderr");
        }
    } else {
        open_output("stderr", STDERR_FILENO, request->stderr_path);
    }
    if (chdir(request->directory) != 0) {
        fail_step("chdir");
    }
    /* Last, so that a low limit on files or memory binds the task and not our own steps. */
    for (uint32_t index = 0; index < request->limit_count; index++) {
        const resource_limit_t *wanted = &request->limits[index];
        if (setrlimit((int)wanted->resource, &wanted->limit) != 0) {
            fail_step("rlimit");
        }
    }
    answer("E", 1);
    environ = request->variables; /* execvp then searches the PATH of the task, not the agent's */
    (void)execvp(request->arguments[0], request->arguments);
    fail("exec", errno, EXIT_EXEC_FAILED);
}

int main(int count, char **words)
{
    static char order[PATHS_BYTES_MAX];
    char *end = NULL;
    errno = 0;
    const long parent = count == 2 ? strtol(words[1], &end, 10) : 0;
    if (errno != 0 || parent <= 0 || parent > INT_MAX || *end != '\0') {
        fail("usage", EINVAL, EXIT_STEP_FAILED);
    }
    prepare((pid_t)parent);
    const size_t order_bytes = serve(order);
    park((pid_t)parent, order + 1, order_bytes - 1U);
    answer("R", 1);
    const request_t request = read_request();
    become(&request);
}

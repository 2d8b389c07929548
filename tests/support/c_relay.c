/*
 * The yardstick of `make bench`: the least that a relay between two pipes can cost.
 *
 *   c_relay COMMAND [ARG ...]   start COMMAND on two pipes and copy both directions with poll, read and write
 *   c_relay                     echo stdin to stdout: the server behind every relay that is measured
 *
 * Not a wrapper to use: it parses nothing, keeps nothing and forwards no signal.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHUNK_BYTES = 64 << 10 };

/* One direction; what was read and not yet written is chunk[start..end). */
struct way {
    int from, to;
    ssize_t start, end;
    char chunk[CHUNK_BYTES];
};

/* Writes what there is. Returns 0 when the reader is gone. */
static int drain(struct way *way)
{
    while (way->start < way->end) {
        ssize_t done = write(way->to, way->chunk + way->start, (size_t)(way->end - way->start));
        if (done < 0)
            return errno == EAGAIN || errno == EINTR;
        way->start += done;
    }
    return 1;
}

/* Reads one chunk and writes as much of it as goes at once. Returns 0 at the end of either side. */
static int pass(struct way *way)
{
    ssize_t got = read(way->from, way->chunk, CHUNK_BYTES);
    if (got < 0)
        return errno == EAGAIN || errno == EINTR;
    way->start = 0;
    way->end = got;
    return got > 0 && drain(way);
}

static void let_go(struct way *way)
{
    close(way->from);
    close(way->to);
    way->from = -1;
}

/* Waits for what each direction waits for: room where something is left over, bytes otherwise. */
static void copy(struct way *ways, int count)
{
    for (;;) {
        struct pollfd ends[2];
        int open = 0;
        for (int at = 0; at < count; at++) {
            int full = ways[at].start < ways[at].end;
            ends[at].fd = ways[at].from < 0 ? -1 : full ? ways[at].to : ways[at].from;
            ends[at].events = full ? POLLOUT : POLLIN;
            ends[at].revents = 0;
            open += ways[at].from >= 0;
        }
        if (!open)
            return;
        if (poll(ends, (nfds_t)count, -1) < 0)
            continue;
        for (int at = 0; at < count; at++)
            if (ends[at].revents && !(ends[at].events == POLLOUT ? drain(&ways[at]) : pass(&ways[at])))
                let_go(&ways[at]);
    }
}

static int relay(char **command)
{
    int in[2], out[2], status;
    pid_t server;

    if (pipe(in) != 0 || pipe(out) != 0 || (server = fork()) < 0) {
        perror("c_relay");
        return 1;
    }
    if (server == 0) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        close(in[0]);
        close(in[1]);
        close(out[0]);
        close(out[1]);
        execvp(command[0], command);
        perror(command[0]);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    signal(SIGPIPE, SIG_IGN);
    static struct way ways[2];
    ways[0].from = 0;
    ways[0].to = in[1];
    ways[1].from = out[0];
    ways[1].to = 1;
    for (int at = 0; at < 2; at++)
        fcntl(ways[at].to, F_SETFL, fcntl(ways[at].to, F_GETFL) | O_NONBLOCK);
    copy(ways, 2);
    while (waitpid(server, &status, 0) < 0 && errno == EINTR)
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int count, char **words)
{
    static struct way echo = {.from = 0, .to = 1};

    if (count > 1)
        return relay(words + 1);
    while (pass(&echo))
        ;
    return 0;
}

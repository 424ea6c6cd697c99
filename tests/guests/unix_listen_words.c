/* Connections that have bytes, or are closed again, before they are accepted: as those of clients
 * that do not wait for the server to begin. */
#include "unix.h"
#include <sys/wait.h>

static void pause_ms(long ms)
{
    struct timespec time = {.tv_nsec = ms * 1000000};
    while (nanosleep(&time, &time))
        CHECK_EQ(errno, EINTR, "nanosleep");
}

/* One word for each connection; every third one is not kept for the answer. */
static void ask(const char *name, int more)
{
    for (uint64_t turn = 0;; turn++) {
        uint64_t answer, word = turn;
        char end;
        int fd = SYS(socket(AF_UNIX, SOCK_STREAM, 0));
        SYS(connect_to(fd, name));
        CHECK_EQ(send(fd, &word, sizeof(word), MSG_NOSIGNAL), sizeof(word), "send a word");
        if (turn % 3) {
            CHECK_EQ(recv(fd, &answer, sizeof(answer), MSG_WAITALL), sizeof(answer), "an answer");
            CHECK_EQ(answer, word + 1, "the answer to a word");
        }
        SYS(close(fd));
        pause_ms(4);
        if (turn % 3 == 2 && poll(&(struct pollfd){.fd = more, .events = POLLIN}, 1, 0)) {
            CHECK_EQ(read(more, &end, 1), 0, "the end");
            break;
        }
    }
}

int main(void)
{
    guest_begin();
    char name[108];
    int more[2], left;
    guest_path(name, sizeof(name), "door");
    int door = bound(SOCK_STREAM, name);
    SYS(listen(door, 5));
    SYS(pipe(more));
    pid_t client = SYS(fork());
    if (client == 0) {
        close(more[1]);
        ask(name, more[0]);
        _exit(0);
    }
    SYS(close(more[0]));
    guest_ready();
    for (uint64_t turn = 0;; turn++) {
        uint64_t word;
        if (turn % 3 == 0 && more[1] >= 0 && !guest_running()) {
            SYS(close(more[1]));
            more[1] = -1;
        }
        struct pollfd waiting = {.fd = door, .events = POLLIN};
        int ready = poll(&waiting, 1, more[1] < 0 ? 100 : -1);
        if (ready == -1 && errno == EINTR)
            continue;
        if (ready == 0 && waitpid(client, &left, WNOHANG) == client)
            break;
        if (ready == 0) {
            turn--;
            continue;
        }
        pause_ms(2);
        int one = SYS(accept(door, NULL, NULL));
        CHECK_EQ(recv(one, &word, sizeof(word), MSG_WAITALL), sizeof(word), "receive a word");
        CHECK_EQ(word, turn, "the order of words");
        word++;
        if (turn % 3)
            CHECK_EQ(send(one, &word, sizeof(word), MSG_NOSIGNAL), sizeof(word), "send an answer");
        SYS(close(one));
    }
    CHECK(WIFEXITED(left) && WEXITSTATUS(left) == 0, "the client's end: %#x", left);
    SYS(unlink(name));
    guest_success();
}

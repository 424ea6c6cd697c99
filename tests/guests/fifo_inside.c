/* A FIFO by its name, both ends in the job: bytes in flight, a reader asleep, and it can be
 * opened once more. */
#include "guest.h"
#include <sys/wait.h>

int main(void)
{
    guest_begin();
    char path[256];
    unlink(guest_path(path, sizeof(path), "fifo"));
    SYS(mkfifo(path, 0600));
    int answer[2];
    SYS(pipe(answer));
    pid_t child = SYS(fork());
    if (child == 0) {
        int fd = SYS(open(path, O_RDONLY));
        char bytes[3];
        for (;;) {
            ssize_t got = SYS(read(fd, bytes, sizeof(bytes)));
            if (got == 0)
                _exit(7);
            CHECK_EQ(SYS(write(answer[1], bytes, (size_t)got)), got, "answer");
        }
    }
    int fd = SYS(open(path, O_WRONLY));
    guest_ready();
    do {
        char bytes[8] = "";
        size_t used = 0;
        SYS(write(fd, "abcd", 4));
        int more = SYS(open(path, O_WRONLY | O_NONBLOCK));
        SYS(write(more, "efg", 3));
        SYS(close(more));
        while (used < 7)
            used += (size_t)SYS(read(answer[0], bytes + used, 7 - used));
        CHECK(!strcmp(bytes, "abcdefg"), "through the FIFO: %s", bytes);
    } while (guest_running());
    SYS(close(fd));
    int status;
    SYS(waitpid(child, &status, 0));
    CHECK_EQ(status, 7 << 8, "status of the reader");
    SYS(unlink(path));
    guest_success();
}

/* Events that are unread half of the time: a move waits for the program to read them, none is
 * lost or comes twice. */
#include "guest.h"
#include <sys/inotify.h>

int main(void)
{
    guest_begin();
    char path[256], buffer[4096] __attribute__((aligned(8)));
    int fd = SYS(open(guest_path(path, sizeof(path), "watched"), O_RDWR | O_CREAT, 0600));
    int events = SYS(inotify_init1(IN_NONBLOCK));
    int watch = SYS(inotify_add_watch(events, path, IN_MODIFY));
    guest_ready();
    int running = 1;
    while (running) {
        SYS(write(fd, "x", 1));
        running = guest_running();
        ssize_t got = SYS(read(events, buffer, sizeof(buffer)));
        const struct inotify_event *event = (const void *)buffer;
        CHECK_EQ(got, sizeof(*event), "size of the events");
        CHECK_EQ(event->wd, watch, "watch descriptor");
        CHECK_EQ(event->mask, IN_MODIFY, "event");
        CHECK(read(events, buffer, sizeof(buffer)) == -1 && errno == EAGAIN, "an event too many");
        running = running && guest_running();
    }
    guest_success();
}

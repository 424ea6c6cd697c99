/* inotify: watch descriptors and masks. Events that wait unread are refused by name, so none
 * waits while the job may be moved. */
#include "guest.h"
#include <sys/inotify.h>

static char dir[256], file[300];
static int watch_dir, watch_file;

/* The next event; its watch descriptor and mask must be these. */
static void expect(int fd, int watch, uint32_t mask)
{
    char buffer[4096] __attribute__((aligned(8)));
    static char held[4096] __attribute__((aligned(8)));
    static ssize_t size, at;
    if (at == size) {
        size = read(fd, buffer, sizeof(buffer));
        CHECK(size > 0, "no event: %s", strerror(errno));
        memcpy(held, buffer, (size_t)size);
        at = 0;
    }
    struct inotify_event *event = (void *)(held + at);
    at += (ssize_t)(sizeof(*event) + event->len);
    CHECK_EQ(event->wd, watch, "watch descriptor");
    CHECK_EQ(event->mask, mask, "mask of the event");
}

static void touch(void)
{
    int fd = SYS(open(file, O_WRONLY | O_APPEND));
    CHECK_EQ(write(fd, "x", 1), 1, "write");
    SYS(close(fd));
}

int main(void)
{
    guest_begin();
    SYS(mkdir(guest_path(dir, sizeof(dir), "watched"), 0755));
    snprintf(file, sizeof(file), "%s/file", dir);
    SYS(close(SYS(open(file, O_WRONLY | O_CREAT, 0600))));
    int fd = SYS(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
    int first = SYS(inotify_add_watch(fd, "/", IN_DELETE_SELF));
    watch_dir = SYS(inotify_add_watch(fd, dir, IN_CREATE | IN_MODIFY));
    watch_file = SYS(inotify_add_watch(fd, file, IN_CLOSE_WRITE));
    SYS(inotify_rm_watch(fd, first)); /* a gap in the numbers, and one IN_IGNORED */
    expect(fd, first, IN_IGNORED);
    guest_ready();
    do {
        char byte[512];
        CHECK(read(fd, byte, sizeof(byte)) == -1 && errno == EAGAIN, "an event too many");
    } while (guest_running());
    touch();
    expect(fd, watch_dir, IN_MODIFY);
    expect(fd, watch_file, IN_CLOSE_WRITE);
    SYS(unlink(file));
    SYS(rmdir(dir));
    guest_success();
}

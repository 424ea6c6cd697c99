/* Descriptors of /proc that show memory: the own maps, whole and half read, memory itself for reading
 * and writing, the environment, maps of a child. */
#include "proc_text.h"
#include <sys/wait.h>

int main(void)
{
    guest_begin();
    pid_t child = SYS(fork());
    if (child == 0)
        for (;;)
            pause();
    char path[64];
    int maps = SYS(open("/proc/self/maps", O_RDONLY));
    int half = SYS(open("/proc/thread-self/smaps", O_RDONLY | O_CLOEXEC));
    int mem = SYS(open("/proc/self/mem", O_RDWR));
    int twin = SYS(dup(mem));
    int environment = SYS(open("/proc/self/environ", O_RDONLY));
    snprintf(path, sizeof(path), "/proc/%d/maps", child);
    int of_child = SYS(open(path, O_RDONLY));
    CHECK_EQ(SYS(read(half, text, 50)), 50, "read");
    static volatile long value = 17;
    guest_ready();
    do {
        check_holds(maps, "[stack]", "own maps");
        check_holds(of_child, "[stack]", "the child's maps");
        check_holds(environment, "GUEST_STATUS=", "own environment");
        CHECK_EQ(SYS(lseek(half, 0, SEEK_CUR)), 50, "position");
        CHECK(fcntl(half, F_GETFD) == FD_CLOEXEC && fcntl(mem, F_GETFD) == 0, "close-on-exec");
        check_memory(mem, &value);
        /* The two share a position. */
        long got = 0;
        SYS(lseek(mem, (off_t)(uintptr_t)&value, SEEK_SET));
        CHECK_EQ(SYS(read(twin, &got, sizeof(got))), 8, "own memory, by a duplicate");
        CHECK_EQ(got, value, "own memory, by a duplicate");
    } while (guest_running());
    SYS(kill(child, SIGKILL));
    SYS(waitpid(child, NULL, 0));
    guest_success();
}

/* Descriptors of /proc and /sys: own files and directories, those of a child and of the machine,
 * half read. */
#include "proc_text.h"
#include <dirent.h>
#include <sys/wait.h>

/* Numbers of the open descriptors, by a directory that stays open. */
static int count(int fd)
{
    int entries = 0;
    long n;
    SYS(lseek(fd, 0, SEEK_SET));
    while ((n = SYS(syscall(SYS_getdents64, fd, text, sizeof(text)))) > 0)
        for (long at = 0; at < n; at += *(unsigned short *)(text + at + 16))
            entries++;
    return entries;
}

int main(void)
{
    guest_begin();
    pid_t child = SYS(fork());
    if (child == 0)
        for (;;)
            pause();
    char path[64], want[64], childs[64];
    int maps = SYS(open("/proc/self/maps", O_RDONLY));
    int status = SYS(open("/proc/self/status", O_RDONLY));
    int half = SYS(open("/proc/self/status", O_RDONLY));
    int mem = SYS(open("/proc/self/mem", O_RDWR));
    int dir = SYS(open("/proc/self/fd", O_RDONLY | O_DIRECTORY));
    int score = SYS(open("/proc/self/oom_score_adj", O_RDWR));
    snprintf(path, sizeof(path), "/proc/%d/stat", child);
    int of_child = SYS(open(path, O_RDONLY));
    int meminfo = SYS(open("/proc/meminfo", O_RDONLY));
    int sysfs = SYS(open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY));
    SYS(read(half, text, 30));
    int before = count(dir);
    snprintf(want, sizeof(want), "\nPid:\t%d\n", getpid());
    snprintf(childs, sizeof(childs), "%d (", child);
    static volatile long value = 17;
    guest_ready();
    do {
        check_holds(maps, "[stack]", "own maps");
        check_holds(status, want, "own status");
        check_holds(of_child, childs, "the child's stat");
        check_holds(meminfo, "MemTotal:", "meminfo");
        check_holds(sysfs, "never", "a file of /sys");
        CHECK_EQ(SYS(lseek(half, 0, SEEK_CUR)), 30, "position");
        CHECK_EQ(count(dir), before, "descriptors");
        check_memory(mem, &value);
        SYS(lseek(score, 0, SEEK_SET));
        CHECK(read_all(score) > 0, "the own score");
    } while (guest_running());
    read_all(half);
    CHECK(strstr(text, want), "the other half of the status");
    SYS(kill(child, SIGKILL));
    SYS(waitpid(child, NULL, 0));
    guest_success();
}

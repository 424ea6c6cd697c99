/* Connects to its peer whenever the file GUEST_STATUS.connect is there, and closes that connection
 * when it is not; GUEST_STATUS.connected tells. What it has answers at each turn. */
#include "tcp.h"

int main(void)
{
    char wanted[256], told[256], got;
    int fd = -1;
    guest_begin();
    guest_path(wanted, sizeof(wanted), "connect");
    guest_path(told, sizeof(told), "connected");
    guest_ready();
    do {
        int want = !access(wanted, F_OK);
        if (want && fd < 0) {
            fd = tcp_connect("4", 'e');
            SYS(close(SYS(open(told, O_CREAT | O_WRONLY | O_CLOEXEC, 0666))));
        } else if (!want && fd >= 0) {
            tcp_finish(fd);
            fd = -1;
            SYS(unlink(told));
        }
        if (fd >= 0) {
            tcp_write_all(fd, "x", 1);
            tcp_read_all(fd, &got, 1);
        }
    } while (guest_running());
    if (fd >= 0)
        tcp_finish(fd);
    guest_success();
}

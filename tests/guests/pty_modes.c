/* State of ptys: modes of the line, window size, packet mode, lock, exclusive mode, flags and
 * permissions, a slave that was closed. */
#include "pty.h"

static void set_modes(int fd)
{
    struct termios modes;
    SYS(tcgetattr(fd, &modes));
    modes.c_iflag = IGNBRK | ISTRIP | INLCR | IXANY | IMAXBEL;
    modes.c_oflag = OPOST | OLCUC | TAB3;
    modes.c_cflag = CS7 | PARENB | CREAD | HUPCL | CLOCAL;
    modes.c_lflag = ICANON | ECHO | ECHOK | TOSTOP | NOFLSH;
    modes.c_cc[VINTR] = 'q';
    modes.c_cc[VEOL] = ';';
    modes.c_cc[VERASE] = 0x08;
    modes.c_cc[VKILL] = 0;
    cfsetispeed(&modes, B1200);
    cfsetospeed(&modes, B1200);
    SYS(tcsetattr(fd, TCSANOW, &modes));
}

static void check_packet(const struct pty *pty)
{
    pty_say(pty->slave, "data");
    pty_expect(pty->master, "\0data", 5, "a packet");
    SYS(tcflush(pty->slave, TCIFLUSH));
    CHECK(pty_poll(pty->master, POLLPRI) & POLLPRI, "no change of state in packet mode");
    pty_expect(pty->master, (char[]){TIOCPKT_FLUSHREAD}, 1, "the change");
}

int main(void)
{
    guest_begin();
    struct pty plain = pty_open(), packet = pty_open(), locked = pty_open(), excl = pty_open();
    struct pty closed = pty_open();
    struct termios modes, now;
    struct winsize size = {17, 71, 1000, 2000}, got;
    set_modes(plain.slave);
    SYS(tcgetattr(plain.slave, &modes));
    SYS(ioctl(plain.slave, TIOCSWINSZ, &size));
    SYS(fchmod(plain.slave, 0604));
    SYS(fcntl(plain.master, F_SETFL, O_NONBLOCK));
    pty_raw(packet.slave);
    SYS(ioctl(packet.master, TIOCPKT, &(int){1}));
    SYS(ioctl(locked.master, TIOCSPTLCK, &(int){1}));
    SYS(ioctl(excl.slave, TIOCEXCL));
    SYS(close(closed.slave));
    guest_ready();
    do {
        int on = -1;
        struct stat st;
        char byte;
        SYS(tcgetattr(plain.master, &now));
        CHECK(!memcmp(&now, &modes, sizeof(now)), "the modes have changed");
        SYS(ioctl(plain.slave, TIOCGWINSZ, &got));
        CHECK(!memcmp(&got, &size, sizeof(got)), "the size is %d × %d", got.ws_row, got.ws_col);
        SYS(fstat(plain.slave, &st));
        CHECK_EQ(st.st_mode & 0777, 0604, "permissions");
        CHECK_EQ(st.st_uid, getuid(), "owner");
        CHECK(read(plain.master, &byte, 1) == -1 && errno == EAGAIN, "O_NONBLOCK is gone");
        check_packet(&packet);
        SYS(ioctl(locked.master, TIOCGPTLCK, &on));
        CHECK_EQ(on, 1, "lock");
        SYS(ioctl(excl.slave, TIOCGEXCL, &on));
        CHECK_EQ(on, 1, "exclusive mode");
        CHECK(pty_poll(closed.master, POLLIN) & POLLHUP, "the slave is not closed any more");
        CHECK(read(closed.master, &byte, 1) == -1 && errno == EIO, "a closed slave is read");
    } while (guest_running());
    guest_success();
}

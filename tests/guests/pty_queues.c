/* Bytes in ptys that nobody has read, when the program moves: lines, a part of one, an end of
 * file, raw keys, output, output that was stopped; many of them. */
#include "pty.h"

enum { MANY = 3000, OUTPUT = 6000 };

static char many[OUTPUT];

static void lines(const struct pty *pty)
{
    char got[64];
    pty_say(pty->master, "one\ntwo\n\x04unfini");
    guest_running();
    CHECK_EQ(SYS(read(pty->slave, got, sizeof(got))), 4, "length of the first line");
    CHECK_EQ(SYS(read(pty->slave, got, sizeof(got))), 4, "length of the second line");
    CHECK_EQ(SYS(read(pty->slave, got, sizeof(got))), 0, "end of file");
    CHECK_EQ(pty_poll(pty->slave, POLLIN), 0, "an unfinished line is there");
    pty_say(pty->master, "x\x7fshed\n");
    pty_expect(pty->slave, "unfinished\n", 11, "the line that was finished later");
    static const char echo[] = "one\r\ntwo\r\nunfinix\b \bshed\r\n";
    pty_expect(pty->master, echo, sizeof(echo) - 1, "the echo");
}

static void raw_keys(const struct pty *pty)
{
    CHECK_EQ(SYS(write(pty->master, many, MANY)), MANY, "raw keys");
    guest_running();
    pty_expect(pty->slave, many, MANY, "raw keys");
}

static void output(const struct pty *pty)
{
    CHECK_EQ(SYS(write(pty->slave, many, OUTPUT)), OUTPUT, "output");
    pty_say(pty->master, "and a key");
    guest_running();
    pty_expect(pty->master, many, OUTPUT, "output");
    pty_expect(pty->slave, "and a key", 9, "a key besides");
    CHECK_EQ(pty_poll(pty->master, POLLIN), 0, "more output");
}

static void packets(const struct pty *pty)
{
    pty_say(pty->slave, "written");
    guest_running();
    pty_expect(pty->master, "\0written", 8, "a packet");
}

static void stopped(const struct pty *pty, int by_key)
{
    if (by_key)
        pty_say(pty->master, "\x13");
    else
        SYS(tcflow(pty->slave, TCOOFF));
    while (pty_poll(pty->slave, POLLOUT))
        usleep(100);
    guest_running();
    CHECK_EQ(pty_poll(pty->slave, POLLOUT), 0, "output is not stopped");
    if (!by_key) {
        pty_say(pty->master, "\x11");
        SYS(tcflow(pty->slave, TCOON));
    } else {
        pty_say(pty->master, "\x11");
    }
    while (!pty_poll(pty->slave, POLLOUT))
        usleep(100);
    CHECK_EQ(pty_poll(pty->master, POLLIN), 0, "a stop is echoed");
}

/* Output that is left when the slave is closed already. */
static void left_behind(struct pty *pty)
{
    char name[64], byte;
    snprintf(name, sizeof(name), "/dev/pts/%d", pty->number);
    pty_say(pty->slave, "last words");
    SYS(close(pty->slave));
    guest_running();
    pty_expect(pty->master, "last words", 10, "output of a closed slave");
    CHECK(read(pty->master, &byte, 1) == -1 && errno == EIO, "a closed slave is read");
    pty->slave = SYS(open(name, O_RDWR | O_NOCTTY));
}

int main(void)
{
    guest_begin();
    struct pty cooked = pty_open(), raw = pty_open(), packet = pty_open(), flow = pty_open();
    struct pty last = pty_open();
    for (size_t i = 0; i < sizeof(many); i++)
        many[i] = (char)(guest_mix(i) >> 7);
    pty_raw(raw.slave);
    pty_raw(packet.slave);
    SYS(ioctl(packet.master, TIOCPKT, &(int){1}));
    guest_ready();
    do {
        lines(&cooked);
        raw_keys(&raw);
        output(&raw);
        packets(&packet);
        stopped(&flow, 0);
        stopped(&flow, 1);
        left_behind(&last);
    } while (guest_running());
    guest_success();
}

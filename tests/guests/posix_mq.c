/* POSIX message queues: one open in a parent and, by other descriptions and by other rights, in a
 * child; one that is unlinked; one that is full with a sender that waits; attributes, priorities. */
#include "crew.h"
#include <mqueue.h>

enum { MOST = 4, SIZE = 64 };

static mqd_t store, answers, full;
static char store_name[64];

static mqd_t make(char *name, size_t size, const char *suffix, int flags)
{
    struct mq_attr attr = {.mq_maxmsg = MOST, .mq_msgsize = SIZE};
    snprintf(name, size, "/guest.%d.%d.%s", (int)getuid(), getpid(), suffix);
    return SYS(mq_open(name, O_CREAT | O_EXCL | flags, 0600, &attr));
}

static void send(mqd_t queue, const char *text, unsigned priority)
{
    SYS(mq_send(queue, text, strlen(text), priority));
}

static void expect(mqd_t queue, const char *text, unsigned priority)
{
    char got[SIZE];
    unsigned got_priority;
    ssize_t len = SYS(mq_receive(queue, got, SIZE, &got_priority));
    CHECK_EQ(len, strlen(text), "length of a message");
    CHECK(!memcmp(got, text, (size_t)len), "text of a message: %.*s", (int)len, got);
    CHECK_EQ(got_priority, priority, "priority of a message");
}

static long serve(int n, char question)
{
    (void)n;
    if (question == 'e') {
        mqd_t reader = SYS(mq_open(store_name, O_RDONLY));
        expect(reader, "urgent", 9);
        expect(reader, "first", 1);
        expect(reader, "second", 1);
        expect(reader, "", 0);
        mq_close(reader);
    }
    if (question == 'a')
        expect(answers, "an answer", 5);
    if (question == 'f')
        send(full, "waited", 0);
    return 0;
}

static void check(mqd_t queue, long flags, long count)
{
    struct mq_attr attr;
    SYS(mq_getattr(queue, &attr));
    CHECK_EQ(attr.mq_maxmsg, MOST, "most messages");
    CHECK_EQ(attr.mq_msgsize, SIZE, "size of messages");
    CHECK_EQ(attr.mq_flags, flags, "flags");
    CHECK_EQ(attr.mq_curmsgs, count, "messages");
}

int main(void)
{
    guest_begin();
    char name[64];
    store = make(store_name, sizeof(store_name), "store", O_WRONLY | O_NONBLOCK);
    answers = make(name, sizeof(name), "answers", O_RDWR);
    mqd_t same = SYS(mq_open(name, O_RDONLY));
    SYS(mq_unlink(name));
    full = make(name, sizeof(name), "full", O_RDWR);
    SYS(mq_unlink(name));
    struct mate mates[2] = {crew_start(0, serve), crew_start(1, serve)};
    guest_ready();
    do {
        send(store, "first", 1);
        send(store, "", 0);
        send(store, "second", 1);
        send(store, "urgent", 9);
        for (int n = 0; n < MOST; n++)
            send(full, "filling", 3);
        crew_say(&mates[0], 'a');
        crew_say(&mates[1], 'f');
        for (int n = 0; n < 3; n++) {
            check(store, O_NONBLOCK, MOST);
            check(answers, 0, 0);
            check(same, 0, 0);
            check(full, 0, MOST);
            guest_running();
        }
        CHECK(mq_send(store, "too many", 8, 0) == -1 && errno == EAGAIN, "a full queue");
        struct stat st;
        SYS(fstat(store, &st));
        CHECK_EQ(st.st_mode & 07777, 0600, "mode");
        CHECK_EQ(st.st_uid, getuid(), "owner");
        send(answers, "an answer", 5);
        crew_hear(&mates[0]);
        crew_ask(&mates[0], 'e');
        for (int n = 0; n < MOST; n++)
            expect(full, "filling", 3);
        crew_hear(&mates[1]);
        expect(full, "waited", 0);
    } while (guest_running());
    crew_end(&mates[0]);
    crew_end(&mates[1]);
    SYS(mq_unlink(store_name));
    guest_success();
}

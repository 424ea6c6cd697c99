/* System V message queues: messages in their order and by their types, an empty message, a receiver
 * that waits, a full queue with a sender that waits, who was last, key, mode, room. */
#include "crew.h"
#include <sys/ipc.h>
#include <sys/msg.h>

enum { FULL_ROOM = 400, TEXT = 100 };

struct message {
    long type;
    char text[TEXT];
};

static int ids[3];
enum { STORE, WAITED, FULL };

static void send(int queue, long type, const char *text, size_t len)
{
    struct message message = {.type = type};
    memcpy(message.text, text, len);
    SYS(msgsnd(ids[queue], &message, len, 0));
}

static void expect(int queue, long type, long got_type, const char *text)
{
    struct message message;
    ssize_t len = SYS(msgrcv(ids[queue], &message, TEXT, type, 0));
    CHECK_EQ(len, strlen(text), "length of a message");
    CHECK_EQ(message.type, got_type, "type of a message");
    CHECK(!memcmp(message.text, text, (size_t)len), "text of a message: %.*s", (int)len, message.text);
}

static long serve(int n, char question)
{
    (void)question;
    if (n == 0) {
        expect(WAITED, -10, 3, "for the waiter");
        return 0;
    }
    send(FULL, 9, "it was full", 11);
    return 0;
}

static void check_queue(int queue, key_t key, unsigned long count, unsigned long room)
{
    struct msqid_ds ds;
    SYS(msgctl(ids[queue], IPC_STAT, &ds));
    CHECK_EQ(ds.msg_qnum, count, "messages");
    CHECK_EQ(ds.msg_qbytes, room, "room");
    CHECK_EQ(ds.msg_perm.mode, 0600, "mode");
    CHECK_EQ(ds.msg_perm.uid, getuid(), "owner");
    CHECK_EQ(ds.msg_perm.__key, key, "key");
    if (queue == STORE && count) {
        CHECK_EQ(ds.msg_lspid, getpid(), "last sender");
        CHECK_EQ(ds.msg_lrpid, getpid(), "last receiver");
    }
}

int main(void)
{
    guest_begin();
    key_t key = 0x5900000 + getpid();
    for (int queue = 0; queue < 3; queue++)
        ids[queue] = SYS(msgget(queue == STORE ? key : IPC_PRIVATE, IPC_CREAT | IPC_EXCL | 0600));
    struct msqid_ds ds;
    SYS(msgctl(ids[FULL], IPC_STAT, &ds));
    ds.msg_qbytes = FULL_ROOM;
    SYS(msgctl(ids[FULL], IPC_SET, &ds));
    SYS(msgctl(ids[STORE], IPC_STAT, &ds));
    unsigned long room = ds.msg_qbytes;
    struct mate mates[2] = {crew_start(0, serve), crew_start(1, serve)};
    char text[TEXT] = {0};
    send(STORE, 5, "first five", 10);
    expect(STORE, 0, 5, "first five");
    guest_ready();
    do {
        send(STORE, 7, "first seven", 11);
        send(STORE, 5, "first five", 10);
        send(STORE, 7, "second seven", 12);
        send(STORE, 1L << 40, "", 0);
        send(STORE, 5, "second five", 11);
        for (int n = 0; n < FULL_ROOM / TEXT; n++)
            send(FULL, 1, text, TEXT);
        crew_say(&mates[0], 'x');
        crew_say(&mates[1], 'x');
        for (int n = 0; n < 3; n++) {
            check_queue(STORE, key, 5, room);
            check_queue(WAITED, IPC_PRIVATE, 0, room);
            check_queue(FULL, IPC_PRIVATE, FULL_ROOM / TEXT, FULL_ROOM);
            guest_running();
        }
        CHECK_EQ(SYS(msgget(key, 0)), ids[STORE], "identifier of the key");
        expect(STORE, 5, 5, "first five");
        expect(STORE, 0, 7, "first seven");
        expect(STORE, -6, 5, "second five");
        expect(STORE, 0, 7, "second seven");
        expect(STORE, 0, 1L << 40, "");
        send(WAITED, 11, "not for the waiter", 18);
        send(WAITED, 3, "for the waiter", 14);
        crew_hear(&mates[0]);
        expect(WAITED, 11, 11, "not for the waiter");
        struct message message;
        for (int n = 0; n < FULL_ROOM / TEXT; n++)
            CHECK_EQ(SYS(msgrcv(ids[FULL], &message, TEXT, 1, 0)), TEXT, "a long message");
        crew_hear(&mates[1]);
        expect(FULL, 9, 9, "it was full");
    } while (guest_running());
    crew_end(&mates[0]);
    crew_end(&mates[1]);
    for (int queue = 0; queue < 3; queue++)
        SYS(msgctl(ids[queue], IPC_RMID, NULL));
    guest_success();
}

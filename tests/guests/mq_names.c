/* Names of POSIX message queues: made, opened by a child, made again while the old one is open,
 * unlinked, taken, none; one of the greatest length. They come and go in each turn, and one stays. */
#include "crew.h"
#include <mqueue.h>

enum { LONGEST = 255 };

static char stays[64], passing[64], longest[LONGEST + 2];
static struct mq_attr attr = {.mq_maxmsg = 2, .mq_msgsize = 16};

static mqd_t make(const char *name)
{
    return SYS(mq_open(name, O_CREAT | O_EXCL | O_RDWR, 0600, &attr));
}

static void say(mqd_t queue, char word)
{
    SYS(mq_send(queue, &word, 1, 0));
}

static char hear(mqd_t queue)
{
    char text[16];
    CHECK_EQ(SYS(mq_receive(queue, text, sizeof(text), NULL)), 1, "length of a message");
    return text[0];
}

static long serve(int n, char question)
{
    (void)n;
    const char *name = question == 's' ? stays : question == 'p' ? passing : longest;
    mqd_t queue = SYS(mq_open(name, O_RDWR));
    char word = hear(queue);
    mq_close(queue);
    return word;
}

static void is_none(const char *name)
{
    CHECK(mq_open(name, O_RDWR) == (mqd_t)-1 && errno == ENOENT, "%s is there", name);
    CHECK(mq_unlink(name) == -1 && errno == ENOENT, "%s can be unlinked", name);
}

int main(void)
{
    guest_begin();
    snprintf(stays, sizeof(stays), "/guest.%d.%d.stays", (int)getuid(), getpid());
    snprintf(passing, sizeof(passing), "/guest.%d.%d.passing", (int)getuid(), getpid());
    int len = snprintf(longest, sizeof(longest), "/guest.%d.%d.", (int)getuid(), getpid());
    memset(longest + len, 'x', (size_t)(LONGEST + 1 - len));
    struct mate mate = crew_start(0, serve);
    mqd_t one = make(stays);
    guest_ready();
    do {
        is_none(passing);
        CHECK(mq_open(stays, O_CREAT | O_EXCL | O_RDWR, 0600, &attr) == (mqd_t)-1 && errno == EEXIST,
              "a name that is taken");
        say(one, 'k');
        CHECK_EQ(crew_ask(&mate, 's'), 'k', "heard by a child");
        mqd_t first = make(passing);
        say(first, '1');
        SYS(mq_unlink(passing));
        is_none(passing);
        mqd_t second = make(passing);
        say(second, '2');
        guest_running();
        CHECK_EQ(crew_ask(&mate, 'p'), '2', "the queue that has the name");
        CHECK_EQ(hear(first), '1', "the queue that had it");
        SYS(mq_unlink(passing));
        mqd_t third = make(longest);
        say(third, '3');
        CHECK_EQ(crew_ask(&mate, 'l'), '3', "a long name");
        guest_running();
        SYS(mq_unlink(longest));
        is_none(longest);
        CHECK(mq_open("/", O_RDWR) == (mqd_t)-1, "no name");
        CHECK(mq_open("/a/b", O_RDWR) == (mqd_t)-1 && errno == EACCES, "a slash in a name");
        mq_close(first);
        mq_close(second);
        mq_close(third);
    } while (guest_running());
    crew_end(&mate);
    SYS(mq_unlink(stays));
    is_none(stays);
    guest_success();
}

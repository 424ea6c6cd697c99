/* Who is notified of messages (mq_notify(3)): a process by a signal with a value, a child by another
 * through a description that it shares, one that wants to know nothing (SIGEV_NONE). Each is told
 * of one message, and registers anew. */
#include "crew.h"
#include <mqueue.h>

enum { VALUE = 0x5eed };

static mqd_t own, shared, silent;
static volatile sig_atomic_t told;
static volatile long told_value;

static void on_message(int sig, siginfo_t *info, void *context)
{
    (void)sig, (void)context;
    CHECK_EQ(info->si_code, SI_MESGQ, "code of the signal");
    told_value = (long)info->si_value.sival_ptr;
    told++;
}

static mqd_t make(const char *suffix)
{
    char name[64];
    struct mq_attr attr = {.mq_maxmsg = 4, .mq_msgsize = 16};
    snprintf(name, sizeof(name), "/guest.%d.%d.%s", (int)getuid(), getpid(), suffix);
    mqd_t queue = SYS(mq_open(name, O_CREAT | O_EXCL | O_RDWR, 0600, &attr));
    SYS(mq_unlink(name));
    return queue;
}

static void ask(mqd_t queue, int kind, int sig, long value)
{
    struct sigevent event = {
        .sigev_notify = kind, .sigev_signo = sig, .sigev_value.sival_ptr = (void *)value};
    SYS(mq_notify(queue, &event));
}

static void take(mqd_t queue)
{
    char text[16];
    CHECK_EQ(SYS(mq_receive(queue, text, sizeof(text), NULL)), 1, "length of a message");
}

static void was_told(long value, const char *whom)
{
    CHECK_EQ(told, 1, whom);
    CHECK_EQ(told_value, value, whom);
    told = 0;
}

static long serve(int n, char question)
{
    if (question == 't') {
        was_told(VALUE + 1, "the child");
        take(shared);
    }
    ask(shared, SIGEV_SIGNAL, SIGRTMIN + 3, VALUE + 1);
    return n;
}

/* Somebody is registered: a second one is not taken. */
static void is_taken(mqd_t queue, const char *what)
{
    struct sigevent event = {.sigev_notify = SIGEV_NONE};
    CHECK(mq_notify(queue, &event) == -1 && errno == EBUSY, "%s: nobody is registered", what);
}

int main(void)
{
    guest_begin();
    own = make("own");
    shared = make("shared");
    silent = make("silent");
    SYS(dup2(own, 61));
    struct sigaction act = {.sa_sigaction = on_message, .sa_flags = SA_SIGINFO | SA_RESTART};
    SYS(sigaction(SIGUSR1, &act, NULL));
    SYS(sigaction(SIGRTMIN + 3, &act, NULL));
    struct mate child = crew_start(0, serve);
    ask(own, SIGEV_SIGNAL, SIGUSR1, -VALUE);
    ask(silent, SIGEV_NONE, 0, 0);
    crew_ask(&child, 'r');
    guest_ready();
    do {
        for (int n = 0; n < 3; n++) {
            is_taken(own, "the own queue");
            is_taken(shared, "the shared queue");
            is_taken(silent, "the silent queue");
            guest_running();
        }
        CHECK_EQ(told, 0, "signals too many");
        SYS(mq_send(61, "x", 1, 0));
        was_told(-VALUE, "the process");
        take(own);
        ask(own, SIGEV_SIGNAL, SIGUSR1, -VALUE);
        SYS(mq_send(shared, "y", 1, 0));
        crew_ask(&child, 't');
        SYS(mq_send(silent, "z", 1, 0));
        take(silent);
        ask(silent, SIGEV_NONE, 0, 0);
    } while (guest_running());
    crew_end(&child);
    guest_success();
}

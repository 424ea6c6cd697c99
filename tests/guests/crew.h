/*
 * Children that answer questions: one byte, then a number comes back. A 0 ends them.
 */
#ifndef CREW_H
#define CREW_H
#include "guest.h"
#include <sys/wait.h>

struct mate {
    pid_t pid;
    int ask, answer;
};

/* Starts a child that answers each question by SERVE(N, QUESTION). */
static inline struct mate crew_start(int n, long (*serve)(int n, char question))
{
    int ask[2], answer[2];
    SYS(pipe(ask));
    SYS(pipe(answer));
    pid_t pid = SYS(fork());
    if (pid == 0) {
        char question;
        close(ask[1]);
        close(answer[0]);
        while (SYS(read(ask[0], &question, 1)) == 1 && question) {
            long value = serve(n, question);
            CHECK_EQ(write(answer[1], &value, sizeof(value)), sizeof(value), "answer");
        }
        _exit(0);
    }
    close(ask[0]);
    close(answer[1]);
    return (struct mate){pid, ask[1], answer[0]};
}

static inline void crew_say(const struct mate *mate, char question)
{
    CHECK_EQ(write(mate->ask, &question, 1), 1, "question");
}

static inline long crew_hear(const struct mate *mate)
{
    long value;
    CHECK_EQ(read(mate->answer, &value, sizeof(value)), sizeof(value), "answer of a child");
    return value;
}

static inline long crew_ask(const struct mate *mate, char question)
{
    crew_say(mate, question);
    return crew_hear(mate);
}

/* The child has nothing more to answer: it ends well. */
static inline void crew_end(const struct mate *mate)
{
    int status;
    crew_say(mate, 0);
    close(mate->ask);
    CHECK_EQ(SYS(waitpid(mate->pid, &status, 0)), mate->pid, "the end of a child");
    CHECK_EQ(status, 0, "status of a child");
    close(mate->answer);
}
#endif

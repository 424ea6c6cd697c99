/* A random tree of processes, made from a seed (the first argument): each process does one thing
 * after another, alone or with children of its own, and knows what must come of it. All check at
 * each turn that they are who they were. */
/* In an hour a busy machine may stand still for longer than in the other tests. */
#define MAX_CLOCK_JUMP_NS (120 * NS_PER_S)
#include "guest.h"
#include "soak.h"

/* Processes at one time, and how deep the tree is. */
enum { MOST_ALIVE = 40, DEEPEST = 3, MOST_KIDS = 4 };

static void (*const ACTS[])(void) = {
    act_pipeline, act_sockets, act_locks,   act_signals, act_sleeps,   act_stop,
    act_zombies,  act_exec,    act_orphan,  act_session, act_threads,  act_memory,
    act_storm,    act_events,  act_queue,   act_listen,  act_terminal,
};

/* Each at most so many processes beside the one that does it. */
enum { HELPERS = 4 };

static int may_start(int count)
{
    if (atomic_fetch_add(&all->alive, count) + count <= MOST_ALIVE)
        return 1;
    atomic_fetch_sub(&all->alive, count);
    return 0;
}

static void act(void)
{
    unsigned n = pick(COUNT(ACTS));
    if (!may_start(HELPERS)) {
        doze(20000);
        return;
    }
    ACTS[n]();
    atomic_fetch_sub(&all->alive, HELPERS);
    atomic_fetch_add(&all->done[n], 1);
    check_self();
}

/* A process of the tree: does a few things, has children that do the same. */
static void grow(int depth)
{
    struct kid kids[MOST_KIDS];
    int count = 0;
    for (int turns = 2 + (int)pick(6); turns > 0 && !all->over; turns--) {
        if (depth < DEEPEST && count < MOST_KIDS && pick(3) == 0 && may_start(1)) {
            kids[count] = start();
            if (kids[count].pid == 0) {
                grow(depth + 1);
                atomic_fetch_sub(&all->alive, 1);
                end_kid();
            }
            count++;
        }
        act();
    }
    while (count > 0)
        finish(&kids[--count]);
}

/* Starts trees until it is over; none may end otherwise than it should. */
static void plant(void)
{
    enum { TREES = 3 };
    struct kid trees[TREES] = {{0}};
    do {
        for (int i = 0; i < TREES; i++) {
            if (trees[i].pid && !has_ended(&trees[i]))
                continue;
            trees[i].pid = 0;
            if (!may_start(1))
                continue;
            trees[i] = start();
            if (trees[i].pid == 0) {
                grow(1);
                atomic_fetch_sub(&all->alive, 1);
                end_kid();
            }
        }
        check_self();
    } while (guest_running());
    all->over = 1;
    for (int i = 0; i < TREES; i++)
        if (trees[i].pid)
            finish(&trees[i]);
}

static void tell_what_was_done(void)
{
    char path[256];
    FILE *file = fopen(guest_path(path, sizeof(path), "done"), "w");
    CHECK(file, "%s: %s", path, strerror(errno));
    for (size_t i = 0; i < COUNT(ACTS); i++)
        fprintf(file, "%ld ", atomic_load(&all->done[i]));
    fclose(file);
}

int main(int argc, char **argv)
{
    guest_begin();
    if (argc > 4 && !strcmp(argv[1], "executed"))
        executed(argv);
    CHECK(argc > 1, "usage: soak_tree SEED");
    all = SYS(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    be_born(strtoull(argv[1], NULL, 10));
    guest_ready();
    plant();
    CHECK_EQ(waitpid(-1, NULL, WNOHANG), -1, "a child too many");
    CHECK_EQ(atomic_load(&all->alive), 0, "processes that are left");
    tell_what_was_done();
    guest_success();
}

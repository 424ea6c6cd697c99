/* A parent with much private data and its children, forked without exec: all begin with the same
 * pages, and what one writes no other sees. The argument is the size in MiB. */
#include "crew.h"

enum { CHILDREN = 8 };

static uint64_t size;
static char *data;
static uint64_t turn;

static uint64_t *own_word(int n)
{
    return (uint64_t *)(data + ((uint64_t)n * 7 + 3) % (size / PAGE) * PAGE);
}

/* Some pages, others each turn, and those that were written. */
static void look(int n)
{
    for (uint64_t i = 0; i < 16; i++) {
        uint64_t page = guest_mix(turn * 16 + i + (uint64_t)n) % (size / PAGE);
        const uint64_t *words = (const uint64_t *)(data + page * PAGE);
        CHECK_EQ(words[1], guest_mix(page * PAGE / 8 + 1), "a word that nobody writes");
        if (words != own_word(n))
            CHECK_EQ(words[0], guest_mix(page * PAGE / 8), "a word that another process writes");
    }
}

static long serve(int n, char question)
{
    (void)question;
    turn++;
    uint64_t *word = own_word(n);
    if (turn > 1)
        CHECK_EQ(word[0], turn - 1 + (uint64_t)n * 1000000, "the word of this process");
    word[0] = turn + (uint64_t)n * 1000000;
    look(n);
    return 0;
}

int main(int argc, char **argv)
{
    guest_begin();
    size = (argc > 1 ? strtoull(argv[1], NULL, 10) : 8) << 20;
    data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(data != MAP_FAILED, "mmap: %s", strerror(errno));
    guest_fill(data, size, 0);
    struct mate mates[CHILDREN];
    for (int n = 0; n < CHILDREN; n++)
        mates[n] = crew_start(n + 1, serve);
    guest_ready();
    do {
        serve(0, 'x');
        for (int n = 0; n < CHILDREN; n++)
            crew_ask(&mates[n], 'x');
    } while (guest_running());
    for (int n = 0; n < CHILDREN; n++)
        crew_end(&mates[n]);
    guest_success();
}

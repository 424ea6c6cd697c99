/* Three generations of one program, forked without exec, that have much private memory in common
 * and each have changed some of it: written, given back, unmapped, protected, moved, enlarged. Each
 * checks all that it has in every turn, and goes on writing. The argument is the size in MiB. */
#include "crew.h"

enum { SMALL = 64 * PAGE, CHILDREN = 4, GRANDCHILDREN = 2, STRIDE = 64, KNOWN = 40 };

static uint64_t size, pages, turn;
/* Who this is: 0 the first process, 1 to 4 its children, 10 and on theirs. */
static int self;
/* Its forbears, and itself. */
static char is_known[KNOWN];
/* The first word of each page of `data`, as this process knows it. */
static uint64_t *tags;
static char *data, *lost, *grown, *of_file, *heap, *heap_end;
static uint64_t grown_len = SMALL;
static char blob[SMALL] = {1};
static struct mate mates[CHILDREN + 1];
static char has_given_back, lost_is_gone;

static uint64_t *page_at(uint64_t page)
{
    return (uint64_t *)(data + page * PAGE);
}

/* Where the third child has changed what is mapped, in pages. */
static int is_gone(uint64_t page)
{
    return has_given_back && page >= 8 && page < 48;
}

static void check_data(void)
{
    for (uint64_t page = 0; page < pages; page++) {
        if (is_gone(page))
            continue;
        const uint64_t *words = page_at(page);
        CHECK_EQ(words[0], tags[page], "the first word of a page");
        CHECK(!(tags[page] >> 63) || is_known[tags[page] & 0xff],
              "process %d sees what process %d has written", self, (int)(tags[page] & 0xff));
        int all = page % 8 == turn % 8;
        for (uint64_t i = 1; i < (all ? PAGE / 8 : 2); i++)
            CHECK_EQ(words[i], guest_mix(page * (PAGE / 8) + i), "a word that nobody writes");
    }
}

static void write_page(uint64_t page)
{
    if (is_gone(page))
        return;
    tags[page] = 1ULL << 63 | turn << 16 | (uint64_t)self;
    *page_at(page) = tags[page];
}

/* Some of the pages that are this process's to write. */
static void write_some(void)
{
    for (uint64_t page = (uint64_t)(self % STRIDE); page < pages; page += STRIDE)
        if (guest_mix(page + turn * 77) % 4 == 0)
            write_page(page);
}

static void check_small(const char *at, uint64_t seed, const char *what)
{
    for (uint64_t i = 0; i < SMALL / 8; i++)
        CHECK_EQ(((const uint64_t *)at)[i], guest_mix(seed + i), what);
}

static void fill_small(char *at, uint64_t seed)
{
    for (uint64_t i = 0; i < SMALL / 8; i++)
        ((uint64_t *)at)[i] = guest_mix(seed + i);
}

static void check_given_back(void)
{
    for (uint64_t i = 0; i < 8 * PAGE; i++)
        CHECK_EQ(data[8 * PAGE + i], 0, "memory that was given back");
    for (uint64_t page = 24; page < 32; page++)
        CHECK_EQ(page_at(page)[1], guest_mix(page * (PAGE / 8) + 1), "memory that is read only");
    CHECK_EQ(msync(data + 16 * PAGE, PAGE, MS_ASYNC), -1, "memory that is not mapped");
    const uint64_t *moved = (const uint64_t *)(lost + SMALL);
    for (uint64_t page = 40; page < 48; page++)
        CHECK_EQ(moved[(page - 40) * (PAGE / 8) + 1], guest_mix(page * (PAGE / 8) + 1),
                 "memory that was moved");
}

static void check_all(void)
{
    turn++;
    check_data();
    if (!lost_is_gone)
        check_small(lost, 1 << 20, "memory that the parent has no more");
    for (uint64_t at = 0; at < grown_len; at += SMALL)
        check_small(grown + at, 2 << 20, "memory that was enlarged");
    check_small(of_file, 3 << 20, "pages of a private file mapping");
    CHECK_EQ(of_file[SMALL], 'f', "a page of the file");
    for (char *at = heap; at < heap_end; at += SMALL)
        check_small(at, 4 << 20, "the heap");
    check_small(blob, 5 << 20, "data of the program");
    if (has_given_back)
        check_given_back();
    write_some();
}

/* A child for a moment: what it writes nobody sees. */
static void fork_once(void)
{
    pid_t pid = SYS(fork());
    if (pid == 0) {
        is_known[39] = 1;
        self = 39;
        for (uint64_t page = 0; page < pages; page += 3)
            write_page(page);
        check_all();
        _exit(0);
    }
    int status;
    CHECK_EQ(SYS(waitpid(pid, &status, 0)), pid, "a child for a moment");
    CHECK_EQ(status, 0, "its status");
}

/* Every part of `data` with another fate. */
static void give_back(void)
{
    SYS(madvise(data + 8 * PAGE, 8 * PAGE, MADV_DONTNEED));
    SYS(munmap(data + 16 * PAGE, 8 * PAGE));
    SYS(mprotect(data + 24 * PAGE, 8 * PAGE, PROT_READ));
    SYS(mprotect(data + 32 * PAGE, 8 * PAGE, PROT_NONE));
    void *to = mremap(data + 40 * PAGE, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
                      lost + SMALL);
    CHECK(to == lost + SMALL, "mremap: %s", strerror(errno));
    void *same = mremap(grown, SMALL, 2 * SMALL, 0);
    CHECK(same == grown, "mremap in place: %s", strerror(errno));
    fill_small(grown + SMALL, 2 << 20);
    grown_len = 2 * SMALL;
    has_given_back = 1;
}

static void enlarge_heap(void)
{
    CHECK(sbrk(SMALL) == heap_end, "the heap is in pieces");
    fill_small(heap_end, 4 << 20);
    heap_end += SMALL;
}

static long serve(int n, char question)
{
    static int is_new = 1;
    int is_grandchild = n >= 10;
    if (is_new) {
        is_new = 0;
        turn = 0;
        self = n;
        is_known[n] = 1;
        if (n == 2)
            for (uint64_t page = 0; page < pages; page += 8)
                write_page(page);
        if (n == 3)
            give_back();
        if (n == 4)
            enlarge_heap();
        memset(mates, 0, sizeof(mates));
        for (int i = 0; i < GRANDCHILDREN && n <= 2; i++) {
            is_new = 1;
            mates[i] = crew_start(10 * n + i, serve);
            is_new = 0;
        }
    }
    int has_children = !is_grandchild && mates[0].pid;
    for (int i = 0; i < GRANDCHILDREN && has_children; i++) {
        if (question == 'e')
            crew_end(&mates[i]);
        else
            crew_say(&mates[i], question);
    }
    if (question == 'e')
        return 0;
    check_all();
    for (int i = 0; i < GRANDCHILDREN && has_children; i++)
        crew_hear(&mates[i]);
    return 0;
}

static char *memory(uint64_t len)
{
    void *at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED, "mmap: %s", strerror(errno));
    return at;
}

static char *private_file(void)
{
    char path[512];
    int fd = SYS(open(guest_path(path, sizeof(path), "cow"), O_RDWR | O_CREAT | O_TRUNC, 0666));
    for (uint64_t at = 0; at < 2 * SMALL; at += PAGE) {
        char text[PAGE];
        memset(text, 'f', sizeof(text));
        CHECK_EQ(write(fd, text, sizeof(text)), PAGE, "write");
    }
    void *at = mmap(NULL, 2 * SMALL, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    CHECK(at != MAP_FAILED, "mmap of a file: %s", strerror(errno));
    SYS(close(fd));
    return at;
}

static void make(void)
{
    pages = size / PAGE;
    data = memory(size);
    guest_fill(data, size, 0);
    tags = (uint64_t *)memory(pages * 8);
    for (uint64_t page = 0; page < pages; page++)
        tags[page] = *page_at(page) &= ~(1ULL << 63);
    /* With pages around each that are not mapped. */
    char *room = memory(16 * SMALL);
    lost = room + SMALL;
    grown = room + 8 * SMALL;
    SYS(munmap(room, SMALL));
    SYS(munmap(lost + SMALL, (uint64_t)(grown - lost) - SMALL));
    SYS(munmap(grown + SMALL, 7 * SMALL));
    fill_small(lost, 1 << 20);
    fill_small(grown, 2 << 20);
    of_file = private_file();
    fill_small(of_file, 3 << 20);
    SYS((intptr_t)sbrk((PAGE - (intptr_t)sbrk(0) % PAGE) % PAGE));
    heap = sbrk(SMALL);
    heap_end = heap + SMALL;
    fill_small(heap, 4 << 20);
    fill_small(blob, 5 << 20);
}

int main(int argc, char **argv)
{
    guest_begin();
    size = (argc > 1 ? strtoull(argv[1], NULL, 10) : 4) << 20;
    make();
    is_known[0] = 1;
    for (int n = 1; n <= CHILDREN; n++)
        mates[n] = crew_start(n, serve);
    for (uint64_t page = 5; page < pages; page += STRIDE)
        write_page(page);
    SYS(munmap(lost, SMALL));
    lost_is_gone = 1;
    guest_ready();
    do {
        check_all();
        for (int n = 1; n <= CHILDREN; n++)
            crew_say(&mates[n], 'x');
        for (int n = 1; n <= CHILDREN; n++)
            crew_hear(&mates[n]);
        if (argc <= 1 && turn % 16 == 0)
            fork_once();
    } while (guest_running());
    for (int n = 1; n <= CHILDREN; n++) {
        crew_ask(&mates[n], 'e');
        crew_end(&mates[n]);
    }
    guest_success();
}

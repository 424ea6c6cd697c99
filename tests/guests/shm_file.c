/* One file mapped shared by a parent and its children, at different places, and read and written
 * through descriptors; and mapped privately by a child. */
#include "crew.h"

#define SIZE (16 * PAGE)

static uint64_t *view, *private_view;
static int file;

static long serve(int n, char question)
{
    (void)question;
    if (n == 0)
        view[1]++;
    else {
        uint64_t word;
        CHECK_EQ(pread(file, &word, 8, 16), 8, "read");
        word++;
        CHECK_EQ(pwrite(file, &word, 8, 16), 8, "write");
        private_view[3]++;
        CHECK_EQ(view[3], 3, "a word of the file that was changed privately");
        return (long)private_view[3];
    }
    return 0;
}

static void *map(int flags)
{
    void *at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, flags, file, 0);
    CHECK(at != MAP_FAILED, "mmap: %s", strerror(errno));
    return at;
}

int main(void)
{
    guest_begin();
    char path[256];
    file = SYS(open(guest_path(path, sizeof(path), "mapped"), O_RDWR | O_CREAT | O_TRUNC, 0600));
    SYS(ftruncate(file, SIZE));
    view = map(MAP_SHARED);
    view[3] = 3;
    private_view = map(MAP_PRIVATE);
    struct mate mates[2] = {crew_start(0, serve), crew_start(1, serve)};
    view = map(MAP_SHARED);
    guest_ready();
    uint64_t turn = 0;
    do {
        turn++;
        crew_ask(&mates[0], 'x');
        CHECK_EQ(crew_ask(&mates[1], 'x'), 3 + turn, "a private word");
        CHECK_EQ(view[1], turn, "a word written through a mapping");
        CHECK_EQ(view[2], turn, "a word written through a descriptor");
        CHECK_EQ(private_view[3], 3, "the private word of another process");
    } while (guest_running());
    crew_end(&mates[0]);
    crew_end(&mates[1]);
    guest_success();
}

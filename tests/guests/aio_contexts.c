/* AIO contexts of two processes and a thread: events that are not read yet, rings that have come
 * round and that are full, a counter that is told (IOCB_FLAG_RESFD), a reader that takes events
 * from the ring itself. Each request says which one it is. */
#include "aio.h"
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

struct user {
    aio_context_t context;
    int file, told, by_hand;
    /* Of requests: submitted, read. */
    uint64_t submitted, read;
    uint64_t seed;
    uint32_t places;
};

static char block[512];

static void begin(struct user *u, unsigned requests, int by_hand)
{
    u->context = aio_new(requests);
    u->places = aio_ring_of(u->context)->nr;
    u->file = SYS(memfd_create("aio", 0));
    u->told = SYS(eventfd(0, EFD_NONBLOCK));
    u->by_hand = by_hand;
    u->seed = requests;
    SYS(pwrite(u->file, block, sizeof(block), 0));
}

static int submit(struct user *u)
{
    struct iocb request = {
        .aio_data = u->submitted, .aio_fildes = (uint32_t)u->file,
        .aio_lio_opcode = IOCB_CMD_PREAD, .aio_buf = (uintptr_t)block,
        .aio_nbytes = u->submitted % sizeof(block),
        .aio_flags = IOCB_FLAG_RESFD, .aio_resfd = (uint32_t)u->told,
    };
    int done = aio_submit(u->context, &request);
    u->submitted += (uint64_t)done;
    return done;
}

static void verify(struct user *u, const struct io_event *event)
{
    CHECK_EQ(event->data, u->read, "number of a request");
    CHECK_EQ(event->res, u->read % sizeof(block), "bytes of a request");
    u->read++;
}

static void read_one(struct user *u)
{
    struct io_event event;
    struct aio_ring *ring = aio_ring_of(u->context);
    if (u->by_hand) {
        CHECK(ring->head != ring->tail, "no event of request %llu", (unsigned long long)u->read);
        verify(u, &ring->events[ring->head]);
        ring->head = (ring->head + 1) % ring->nr;
        return;
    }
    CHECK_EQ(aio_events(u->context, 1, 1, &event), 1, "events");
    verify(u, &event);
}

static void turn(struct user *u)
{
    struct aio_ring *ring = aio_ring_of(u->context);
    uint64_t told = 0, unread = u->submitted - u->read;
    CHECK_EQ(ring->nr, u->places, "places of the ring");
    CHECK_EQ((ring->tail + ring->nr - ring->head) % ring->nr, unread, "unread events");
    u->seed = guest_mix(u->seed + 1);
    /* Often few, sometimes all that it takes. */
    uint64_t most = u->seed % 8 ? u->seed % 40 : UINT64_MAX;
    for (uint64_t n = 0; n < most && submit(u); n++)
        told++;
    unread += told;
    CHECK(unread < u->places && (most != UINT64_MAX || unread > u->places / 3),
          "%llu requests in a ring of %u places", (unsigned long long)unread, u->places);
    uint64_t value = 0;
    if (told)
        CHECK_EQ(read(u->told, &value, sizeof(value)), sizeof(value), "eventfd");
    CHECK_EQ(value, told, "the counter");
    for (uint64_t n = guest_mix(u->seed) % (unread + 1); n; n--)
        read_one(u);
}

static void *other_thread(void *unused)
{
    struct user user = {0};
    begin(&user, 60, 0);
    while (!guest_stopping()) {
        turn(&user);
        usleep(1000);
    }
    while (user.read < user.submitted)
        read_one(&user);
    SYS(syscall(SYS_io_destroy, user.context));
    return unused;
}

int main(void)
{
    pthread_t thread;
    struct user small = {0}, large = {0};
    guest_begin();
    pid_t child = SYS(fork());
    begin(&small, 1, 1);
    begin(&large, 1000, 0);
    CHECK(!pthread_create(&thread, NULL, other_thread, NULL), "thread");
    if (child)
        guest_ready();
    for (int on = 1; on; on = child ? guest_running() : !guest_stopping()) {
        turn(&small);
        turn(&large);
        if (!child)
            usleep(1500);
    }
    CHECK(!pthread_join(thread, NULL), "join");
    while (large.read < large.submitted)
        read_one(&large);
    SYS(syscall(SYS_io_destroy, large.context));
    SYS(syscall(SYS_io_destroy, small.context));
    CHECK(syscall(SYS_io_destroy, small.context) == -1 && errno == EINVAL, "a second io_destroy");
    if (!child)
        _exit(0);
    int status;
    SYS(waitpid(child, &status, 0));
    CHECK_EQ(status, 0, "status of the child");
    guest_success();
}

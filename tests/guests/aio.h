/* AIO by its system calls (io_setup(2)). */
#ifndef AIO_H
#define AIO_H
#include "guest.h"
#include <linux/aio_abi.h>

struct aio_ring {
    uint32_t id, nr, head, tail, magic, compat, incompat, header;
    struct io_event events[];
};

static inline aio_context_t aio_new(unsigned requests)
{
    aio_context_t context = 0;
    SYS(syscall(SYS_io_setup, requests, &context));
    return context;
}

static inline struct aio_ring *aio_ring_of(aio_context_t context)
{
    return (struct aio_ring *)context;
}

/* Like io_submit(2) of one request, 0 if there is no place for it. */
static inline int aio_submit(aio_context_t context, struct iocb *request)
{
    long n = syscall(SYS_io_submit, context, 1L, &request);
    CHECK(n == 1 || (n < 0 && errno == EAGAIN), "io_submit: %s", strerror(errno));
    return n == 1;
}

/* Events that there are, at least LEAST and at most MOST. */
static inline long aio_events(aio_context_t context, long least, long most, struct io_event *to)
{
    struct timespec none = {0};
    return SYS(syscall(SYS_io_getevents, context, least, most, to, least ? NULL : &none));
}
#endif

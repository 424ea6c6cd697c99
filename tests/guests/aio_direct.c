/* Writes past the page cache (O_DIRECT) that are under way at many instants: a move waits for
 * them. Each block is read back, and holds what was written last. */
#include "aio.h"
#include <poll.h>

enum { BLOCK = 4096, BLOCKS = 16 };

int main(void)
{
    static struct iocb requests[BLOCKS], poll_request;
    struct io_event events[BLOCKS + 1];
    char path[256];
    int ends[2];
    guest_begin();
    int file = open(guest_path(path, sizeof(path), "blocks"), O_RDWR | O_CREAT | O_DIRECT, 0600);
    if (file < 0)
        file = SYS(open(path, O_RDWR | O_CREAT, 0600));
    char *memory = SYS(mmap(NULL, 2 * BLOCKS * BLOCK, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    char *back = memory + BLOCKS * BLOCK;
    SYS(pipe(ends));
    aio_context_t context = aio_new(64);
    guest_ready();
    for (uint64_t turn = 0; guest_running(); turn++) {
        guest_fill(memory, BLOCKS * BLOCK, turn);
        for (uint32_t i = 0; i < BLOCKS; i++) {
            requests[i] = (struct iocb){
                .aio_data = i, .aio_fildes = (uint32_t)file, .aio_lio_opcode = IOCB_CMD_PWRITE,
                .aio_buf = (uintptr_t)(memory + i * BLOCK), .aio_nbytes = BLOCK,
                .aio_offset = i * BLOCK};
            CHECK(aio_submit(context, &requests[i]), "no place");
        }
        poll_request = (struct iocb){.aio_data = BLOCKS, .aio_fildes = (uint32_t)ends[0],
                                     .aio_lio_opcode = IOCB_CMD_POLL, .aio_buf = POLLIN};
        CHECK(aio_submit(context, &poll_request), "no place");
        SYS(write(ends[1], "x", 1));
        for (long n = 0; n < BLOCKS + 1;)
            n += aio_events(context, 1, BLOCKS + 1 - n, events + n);
        for (size_t i = 0; i < BLOCKS + 1; i++)
            CHECK(events[i].data == BLOCKS ? events[i].res & POLLIN : events[i].res == BLOCK,
                  "result of request %llu: %lld", events[i].data, events[i].res);
        SYS(read(ends[0], back, 1));
        CHECK_EQ(pread(file, back, BLOCKS * BLOCK, 0), BLOCKS * BLOCK, "read");
        guest_verify(back, BLOCKS * BLOCK, turn, "blocks");
    }
    guest_success();
}

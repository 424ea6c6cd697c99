/* Question and answer without a pause: wherever the job is frozen, one of them is under way, and as many
 * bytes were sent as came. An answer is not the question. */
#include "tcp.h"

int main(void)
{
    unsigned char out[100], in[100];
    guest_begin();
    int fd = tcp_connect("4", 'i');
    guest_ready();
    uint64_t at = 0;
    do {
        for (int i = 0; i < 20; i++, at += sizeof(out)) {
            tcp_pattern(out, sizeof(out), at);
            tcp_write_all(fd, out, sizeof(out));
            tcp_read_all(fd, in, sizeof(in));
            for (size_t b = 0; b < sizeof(in); b++)
                CHECK_EQ(in[b] ^ 0xff, out[b], "a byte of the answer");
        }
    } while (guest_running());
    tcp_finish(fd);
    guest_success();
}

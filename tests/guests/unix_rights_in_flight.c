/* Descriptors on their way inside of sockets: of a file with its offset, of pipes that nobody
 * else has, of a socket in itself, of the other end of a pair, with the byte that they go with. */
#include "unix.h"

int main(void)
{
    guest_begin();
    char path[200];
    guest_path(path, sizeof(path), "file");
    int file = SYS(open(path, O_RDWR | O_CREAT | O_TRUNC, 0600));
    CHECK_EQ(write(file, "0123456789", 10), 10, "write");
    int lane[2], packets[2], loop[2];
    SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, lane));
    SYS(socketpair(AF_UNIX, SOCK_DGRAM, 0, packets));
    SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, loop));
    put_with(loop[0], "loop", loop, 2, 0);
    guest_ready();
    do {
        int pipes[2], pair[2], got[16];
        SYS(lseek(file, 3, SEEK_SET));
        SYS(pipe2(pipes, O_CLOEXEC));
        CHECK_EQ(write(pipes[1], "in the pipe", 11), 11, "write");
        put(lane[0], "before");
        put_with(lane[0], "A", (int[]){file, pipes[0]}, 2, 0);
        put(lane[0], "between");
        put_with(lane[0], "B", (int[]){pipes[1]}, 1, 0);
        SYS(close(pipes[0]));
        SYS(close(pipes[1]));
        SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
        put(pair[0], "to one on its way");
        put_with(packets[0], "end", &pair[1], 1, 0);
        SYS(close(pair[1]));
        /* A socket with a descriptor in it, in a socket. */
        int outer[2];
        SYS(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, outer));
        put_with(outer[0], "inner", &file, 1, 0);
        put_with(packets[0], "outer", &outer[1], 1, 0);
        SYS(close(outer[1]));
        SYS(close(outer[0]));
        if (!guest_running())
            break;
        char text[32];
        CHECK_EQ(read(lane[1], text, 6), 6, "bytes before");
        CHECK(!memcmp(text, "before", 6), "other bytes before");
        size_t n = take_with(lane[1], "A", got, NULL);
        CHECK_EQ(n, 2, "descriptors with A");
        CHECK_EQ(SYS(lseek(got[0], 0, SEEK_CUR)), 3, "offset of the file on its way");
        CHECK_EQ(read(got[0], text, 2), 2, "read");
        CHECK_EQ(SYS(lseek(file, 0, SEEK_CUR)), 5, "the offset is shared");
        int reader = got[1];
        CHECK_EQ(read(lane[1], text, 7), 7, "bytes between");
        CHECK_EQ(take_with(lane[1], "B", got + 1, NULL), 1, "descriptors with B");
        CHECK_EQ(read(reader, text, sizeof(text)), 11, "bytes of the pipe");
        CHECK_EQ(write(got[1], "x", 1), 1, "the pipe's other end");
        CHECK_EQ(read(reader, text, sizeof(text)), 1, "bytes of the pipe");
        SYS(close(got[0]));
        SYS(close(got[1]));
        SYS(close(reader));
        CHECK_EQ(take_with(packets[1], "end", got, NULL), 1, "descriptors of a packet");
        want(got[0], "to one on its way", "the end of a pair");
        put(got[0], "back");
        want(pair[0], "back", "the other end of the pair");
        SYS(close(got[0]));
        SYS(close(pair[0]));
        CHECK_EQ(take_with(packets[1], "outer", got, NULL), 1, "a socket in a socket");
        CHECK_EQ(take_with(got[0], "inner", got + 1, NULL), 1, "a file in it");
        CHECK_EQ(SYS(lseek(got[1], 0, SEEK_CUR)), 5, "offset of the inner file");
        CHECK_EQ(recv(got[0], text, 1, 0), 0, "end of file");
        SYS(close(got[0]));
        SYS(close(got[1]));
    } while (guest_running());
    int own[2];
    CHECK_EQ(take_with(loop[1], "loop", own, NULL), 2, "a socket in itself");
    put(own[0], "through itself");
    want(loop[1], "through itself", "the socket that was in itself");
    SYS(unlink(path));
    guest_success();
}

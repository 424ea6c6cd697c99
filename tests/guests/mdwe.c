/* PR_SET_MDWE: no memory becomes executable that was not; what was writable and executable before
 * stays so, and children inherit it or not. */
#include "each.h"
#include <sys/prctl.h>

enum { SET_MDWE = 65, GET_MDWE, REFUSE_EXEC_GAIN = 1, NO_INHERIT = 2 };

static const long BITS[] = {REFUSE_EXEC_GAIN, REFUSE_EXEC_GAIN | NO_INHERIT, 0};
static unsigned char *code;

static void setup(int n)
{
    if (!BITS[n])
        return;
    if (prctl(SET_MDWE, BITS[n], 0, 0, 0))
        /* NO_INHERIT is of Linux 6.6. */
        SYS(prctl(SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0));
}

static void check(int n)
{
    int is = prctl(GET_MDWE, 0, 0, 0, 0);
    CHECK(is == BITS[n] || (n == 1 && is == REFUSE_EXEC_GAIN), "PR_GET_MDWE: %d", is);
    void *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK((at == MAP_FAILED) == (is != 0), "mmap: %s", at == MAP_FAILED ? strerror(errno) : "granted");
    if (at != MAP_FAILED)
        SYS(munmap(at, PAGE));
    at = SYS(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    CHECK_EQ(mprotect(at, PAGE, PROT_READ | PROT_EXEC), is ? -1 : 0, "mprotect to executable");
    SYS(munmap(at, PAGE));
    /* mov eax, N; ret */
    static unsigned turn;
    code[1] = (unsigned char)++turn;
    CHECK_EQ(((int (*)(void))code)(), code[1], "code that is written to");
}

static void check_children(void)
{
    SYS(prctl(SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0));
    while (guest_running())
        check(0);
    pid_t pid = SYS(fork());
    if (pid == 0)
        _exit(prctl(GET_MDWE, 0, 0, 0, 0));
    int status;
    SYS(waitpid(pid, &status, 0));
    CHECK_EQ(WEXITSTATUS(status), REFUSE_EXEC_GAIN, "PR_GET_MDWE of a child");
}

int main(void)
{
    guest_begin();
    if (prctl(GET_MDWE, 0, 0, 0, 0) < 0)
        skip("no PR_SET_MDWE");
    code = SYS(mmap(NULL, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memcpy(code, "\xb8\0\0\0\0\xc3", 6);
    each_hold(COUNT(BITS), 0, setup, check);
    check_children();
    guest_success();
}

/* Lets user-mode Linux before 6.16 run on processors with more registers than it has room for, as those with AMX.
 *
 * It saves a process's extended state in 2,696 bytes (HOST_FP_SIZE in arch/x86/um/user-offsets.c). ptrace(2) fills as much
 * as it is given room for, but takes back the whole only: so the rest is taken from what the process has at that moment.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static long set_extended_state(long pid, void *kind, struct iovec *given)
{
    static char state[1 << 16];
    struct iovec whole = {state, sizeof state};

    if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, kind, &whole) < 0)
        return -1;
    memcpy(state, given->iov_base, given->iov_len < whole.iov_len ? given->iov_len : whole.iov_len);
    return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, kind, &whole);
}

long ptrace(enum __ptrace_request request, ...)
{
    va_list rest;
    va_start(rest, request);
    long pid = va_arg(rest, int);
    void *address = va_arg(rest, void *), *data = va_arg(rest, void *);
    va_end(rest);

    if (request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE)
        return set_extended_state(pid, address, data);
    if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
        long word, status = syscall(SYS_ptrace, request, pid, address, &word);
        if (status == 0)
            errno = 0;
        return status < 0 ? status : word;
    }
    return syscall(SYS_ptrace, request, pid, address, data);
}

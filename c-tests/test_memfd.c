/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Files in memory, to be shared as guest memory. */
#include "rig.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define HUGE_PAGE (UINT64_C(2) << 20)

/* Since Linux 6.3, and not in all headers. */
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif
#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x20
#endif

/* What a file that can never be executed is sealed against; 0 where the kernel knows
   no such files. */
static int seal_of_the_machine(void)
{
    int fd = memfd_create("test", MFD_NOEXEC_SEAL);
    if (fd < 0) {
        print_message("no MFD_NOEXEC_SEAL here\n");
        return 0;
    }
    close(fd);
    return F_SEAL_EXEC;
}

static struct stat stat_of(int fd)
{
    struct stat stat;
    assert_return_code(fstat(fd, &stat), errno);
    return stat;
}

static int *map(int fd)
{
    int *at = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(at, MAP_FAILED);
    return at;
}

static void a_file_is_made_and_can_be_shared(void **state)
{
    int fd = 7;
    char path[32], name[64] = "";
    (void)state;
    assert_int_equal(vuf_memfd_create("guest", 4 * PAGE, 0, 0, &fd), 0);
    assert_true(fd > 2);
    assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
    assert_int_equal(stat_of(fd).st_size, 4 * PAGE);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    assert_true(readlink(path, name, sizeof name - 1) > 0);
    assert_string_equal(name, "/memfd:guest (deleted)");

    int *one = map(fd), *other = map(fd);
    assert_int_equal(one[PAGE - 1], 0);
    one[PAGE - 1] = 42;
    assert_int_equal(other[PAGE - 1], 42);
    munmap(one, 4 * PAGE);
    munmap(other, 4 * PAGE);

    int second;
    assert_int_equal(vuf_memfd_create("guest", 1, 0, 0, &second), 0);
    assert_int_equal(stat_of(second).st_size, 1);
    assert_true(stat_of(second).st_ino != stat_of(fd).st_ino);
    close(second);
    close(fd);
}

static void a_sealed_file_keeps_its_size(void **state)
{
    int fd;
    (void)state;
    assert_int_equal(vuf_memfd_create("sealed", 4 * PAGE, 0, VUF_MEMFD_SEAL, &fd), 0);
    const int never_executed = seal_of_the_machine();
    assert_int_equal(fcntl(fd, F_GET_SEALS),
                     never_executed | F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW);
    assert_int_equal(ftruncate(fd, PAGE), -1);
    assert_int_equal(errno, EPERM);
    assert_int_equal(ftruncate(fd, 5 * PAGE), -1);
    assert_int_equal(errno, EPERM);
    int *at = map(fd);
    at[0] = 42;
    munmap(at, 4 * PAGE);
    close(fd);

    /* No others, and none to come. */
    assert_int_equal(vuf_memfd_create("plain", 4 * PAGE, 0, 0, &fd), 0);
    assert_int_equal(fcntl(fd, F_GET_SEALS), never_executed | F_SEAL_SEAL);
    assert_int_equal(stat_of(fd).st_mode & 0111, never_executed == 0 ? 0111 : 0);
    assert_int_equal(ftruncate(fd, PAGE), 0);
    close(fd);
}

/* A machine need not have huge pages. Those that it has need not be free: the file
   is made all the same, and it is mmap() that fails. */
static void huge_pages_are_those_of_the_machine(void **state)
{
    (void)state;
    for (unsigned flags = 0; flags <= VUF_MEMFD_SEAL; flags++) {
        int fd;
        int rc = vuf_memfd_create("huge", 4 * HUGE_PAGE, HUGE_PAGE, flags, &fd);
        if (rc != 0) {
            print_message("no file of huge pages here (%s): only the code is asserted\n",
                          vuf_last_error());
            assert_true(rc == -ENODEV || rc == -ENOSYS || rc == -ENOMEM || rc == -EINVAL);
            assert_non_null(strstr(vuf_last_error(), "huge pages of 0x200000 bytes"));
            assert_int_equal(fd, -1);
            continue;
        }
        assert_int_equal(stat_of(fd).st_size, 4 * HUGE_PAGE);
        assert_int_equal(stat_of(fd).st_blksize, HUGE_PAGE);
        assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
        const int seals = flags == 0 ? F_SEAL_SEAL : F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW;
        assert_int_equal(fcntl(fd, F_GET_SEALS), seals | seal_of_the_machine());
        void *at = mmap(NULL, HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (at == MAP_FAILED) {
            print_message("no huge page is free here: the file is not mapped\n");
            assert_int_equal(errno, ENOMEM);
        } else {
            munmap(at, HUGE_PAGE);
        }
        close(fd);
    }

    int fd = 7;
    int rc = vuf_memfd_create("huge", UINT64_C(1) << 50, UINT64_C(1) << 50, 0, &fd);
    assert_true(rc == -ENODEV || rc == -ENOSYS || rc == -EINVAL);
    assert_int_equal(fd, -1);
}

static void bad_arguments_are_refused(void **state)
{
    struct rig rig = {.peer = -1};
    char name[251];
    (void)state;
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    const struct {
        const char *what, *name;
        uint64_t size, huge_page_size;
        uint32_t flags;
        int code;
    } bad[] = {
        {"name", NULL, PAGE, 0, 0, -EINVAL},
        {"name", "", PAGE, 0, 0, -EINVAL},
        {"name has 250 bytes", name, PAGE, 0, 0, -EINVAL},
        {"size is 0", "memory", 0, 0, 0, -EINVAL},
        {"size is 0", "memory", 0, HUGE_PAGE, 0, -EINVAL},
        {"size is 0x8000000000000000", "memory", UINT64_C(1) << 63, 0, 0, -EFBIG},
        {"size is 0xffffffffffffffff", "memory", UINT64_MAX, 0, 0, -EFBIG},
        {"size is 0x201000, not", "memory", HUGE_PAGE + PAGE, HUGE_PAGE, 0, -EINVAL},
        {"huge_page_size is 0x1, not", "memory", HUGE_PAGE, 1, 0, -EINVAL},
        {"huge_page_size is 0x300000", "memory", 3 * HUGE_PAGE, 3 << 20, 0, -EINVAL},
        {"huge_page_size", "memory", UINT64_MAX, UINT64_MAX, 0, -EINVAL},
        {"flags has unknown bits: 0x2", "memory", PAGE, 0, 2, -EINVAL},
        {"flags", "memory", PAGE, 0, VUF_MEMFD_SEAL | 1u << 31, -EINVAL},
    };
    for (size_t i = 0; i < LENGTH(bad); i++) {
        int fd = 7;
        REFUSED(&rig, bad[i].code, NO_REQUEST, bad[i].what,
                vuf_memfd_create(bad[i].name, bad[i].size, bad[i].huge_page_size, bad[i].flags,
                                 &fd));
        same(&rig, bad[i].what, "fd", fd, -1);
    }
    REFUSED(&rig, -EINVAL, NO_REQUEST, "fd", vuf_memfd_create("memory", PAGE, 0, 0, NULL));
    all_refused(&rig);

    name[249] = '\0';
    int fd;
    assert_int_equal(vuf_memfd_create(name, PAGE, 0, 0, &fd), 0);
    close(fd);
}

/* The kernel would end the process with SIGXFSZ. */
static void a_limit_of_the_process_is_heeded(void **state)
{
    struct rlimit before, limit;
    int fd = 7;
    (void)state;
    assert_return_code(getrlimit(RLIMIT_FSIZE, &before), errno);
    limit = before;
    limit.rlim_cur = 1 << 30;
    assert_return_code(setrlimit(RLIMIT_FSIZE, &limit), errno);
    int above = vuf_memfd_create("memory", (1 << 30) + 1, 0, 0, &fd);
    assert_int_equal(fd, -1);
    int within = vuf_memfd_create("memory", 1 << 30, 0, VUF_MEMFD_SEAL, &fd);
    assert_return_code(setrlimit(RLIMIT_FSIZE, &before), errno);
    assert_int_equal(above, -EFBIG);
    assert_non_null(strstr(vuf_last_error(), "at most 0x40000000 bytes (RLIMIT_FSIZE)"));
    assert_int_equal(within, 0);
    close(fd);
}

static void without_descriptors_there_is_no_file(void **state)
{
    struct rlimit before, limit;
    int fd = 7;
    (void)state;
    assert_return_code(getrlimit(RLIMIT_NOFILE, &before), errno);
    limit = before;
    limit.rlim_cur = 3;
    assert_return_code(setrlimit(RLIMIT_NOFILE, &limit), errno);
    int rc = vuf_memfd_create("memory", PAGE, 0, 0, &fd);
    assert_return_code(setrlimit(RLIMIT_NOFILE, &before), errno);
    assert_int_equal(rc, -EMFILE);
    assert_int_equal(fd, -1);
    assert_int_equal(last_info().errno_value, EMFILE);
}

/* From here on memfd_create() fails with this, where it has the flag or where it has
   not. */
static bool refuse(bool with, unsigned code)
{
    struct sock_filter steps[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_memfd_create, 0, 3),
        /* Its low half: all machines that this runs on are little-endian. */
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, MFD_NOEXEC_SEAL, with ? 0 : 1, with ? 1 : 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | code),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog filter = {.len = LENGTH(steps), .filter = steps};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

/* Makes files on such a machine. Which step failed, or 0. */
static int make_files_on(bool with, unsigned code, int seals)
{
    int fd;
    if (!refuse(with, code)) {
        return 1;
    }
    if (memfd_create("test", with ? MFD_NOEXEC_SEAL : 0) != -1 || errno != (int)code) {
        return 2;
    }
    if (vuf_memfd_create("plain", PAGE, 0, 0, &fd) != 0) {
        return 3;
    }
    if (fcntl(fd, F_GET_SEALS) != (seals | F_SEAL_SEAL)) {
        return 4;
    }
    if (vuf_memfd_create("sealed", PAGE, 0, VUF_MEMFD_SEAL, &fd) != 0) {
        return 5;
    }
    seals |= F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW;
    return fcntl(fd, F_GET_SEALS) == seals ? 0 : 6;
}

static void assert_made_on(bool with, unsigned code, int seals)
{
    int status;
    const pid_t child = fork();
    if (child == 0) {
        _exit(make_files_on(with, code, seals));
    }
    assert_return_code(child, errno);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* Older than Linux 6.3: the flag is not known. */
static void an_older_kernel_makes_files_too(void **state)
{
    (void)state;
    assert_made_on(true, EINVAL, 0);
}

/* vm.memfd_noexec is 2: files are made with the flag or not at all. */
static void a_kernel_that_wants_none_executed_makes_files_too(void **state)
{
    (void)state;
    if (seal_of_the_machine() != 0) {
        assert_made_on(false, EACCES, F_SEAL_EXEC);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_is_made_and_can_be_shared),
        cmocka_unit_test(a_sealed_file_keeps_its_size),
        cmocka_unit_test(huge_pages_are_those_of_the_machine),
        cmocka_unit_test(bad_arguments_are_refused),
        cmocka_unit_test(a_limit_of_the_process_is_heeded),
        cmocka_unit_test(without_descriptors_there_is_no_file),
        cmocka_unit_test(an_older_kernel_makes_files_too),
        cmocka_unit_test(a_kernel_that_wants_none_executed_makes_files_too),
    };
    return cmocka_run_group_tests_name("test_memfd", tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Back-ends that are found, started and ended. */
#include "support.hpp"

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

enum : std::uint32_t { patience_ms = 20000 };

/* Valgrind (3.19) does not know pidfds, without which no program is started. */
bool processes()
{
    const vuf::unique_fd fd(static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0)));
    if (!fd && errno == ENOSYS) {
        MESSAGE("skipped: there are no pidfds here");
    }
    return static_cast<bool>(fd);
}

/* A directory with a disk. */
class place {
  public:
    place()
    {
        REQUIRE(backend_prepare(&files_) == 0);
        const vuf::unique_fd made(open(files_.disk, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
        REQUIRE(ftruncate(made.get(), DISK_SIZE) == 0);
    }
    place(const place &) = delete;
    place &operator=(const place &) = delete;
    ~place() { backend_stop(&files_); }
    std::string path() const { return files_.dir; }
    const char *disk() const { return files_.disk; }

  private:
    backend files_{};
};

std::string absolute(const char *variable)
{
    char *const path = realpath(std::getenv(variable), nullptr);
    REQUIRE(path != nullptr);
    const std::string copy(path);
    std::free(path);
    return copy;
}

vuf::backend_process started(const place &files)
{
    const char *const arguments[] = {"--file", files.disk(), nullptr};
    auto options = vuf::make<vuf_backend_process_options>();
    options.arguments = arguments;
    options.stdout_fd = -1;
    auto process = vuf::backend_process::start(absolute("VUF_INFLIGHT_BACKEND"), options);
    OK(process);
    return *std::move(process);
}

} // namespace

TEST_CASE("back-ends are found and asked")
{
    const fd_guard guard;
    const place files;
    const std::string text = "{\"description\": \"a disk\", \"type\": \"block\", \"binary\": \"" +
                             absolute("VUF_INFLIGHT_BACKEND") + "\"}";
    {
        const vuf::unique_fd file(
            open((files.path() + "/1.json").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
        REQUIRE(write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()));
    }
    const std::string directory = files.path();
    const char *const directories[] = {directory.c_str()};
    auto search = vuf::make<vuf_backend_search>();
    search.directories = directories;
    search.n_directories = 1;
    auto found = vuf::backend_programs::find(search);
    OK(found);
    vuf::backend_programs list = *std::move(found);
    CHECK(list);
    CHECK(list.size() == 1);
    const auto program = list.get(0);
    OK(program);
    CHECK(std::string(program->device_type) == "block");
    CHECK(program->asked == 0);
    CHECK(list.get(1).error() == std::errc::no_such_file_or_directory);
    CHECK(list.ask(1).code() == -ENOENT);
    if (processes()) {
        OK(list.ask(0, patience_ms));
        CHECK(list.get(0)->asked == 1);
    }
    list.free();
    CHECK(!list);
    CHECK(list.size() == 0);
    CHECK(list.get(0).code() == -EINVAL);
    search.flags = 2;
    CHECK(vuf::backend_programs::find(search).code() == -EINVAL);
}

TEST_CASE("a process is owned, and serves")
{
    const fd_guard guard;
    const place files;
    CHECK(vuf::backend_process().get_pid() == -EINVAL);
    CHECK(vuf::backend_process().get_fd() == -EINVAL);
    if (!processes()) {
        return;
    }
    vuf::backend_process process = started(files);
    CHECK(process.get_pid() > 0);
    auto socket = process.take_socket();
    OK(socket);
    CHECK(process.take_socket().error() == vuf::errc::state);
    auto client = vuf::client::from_fd(*std::move(socket));
    OK(client);
    OK(client->get_features());
    CHECK(process.get_exit()->kind == VUF_BACKEND_EXIT_RUNNING);
    CHECK(process.wait(1).error() == std::errc::timed_out);

    vuf::backend_process same(std::move(process));
    CHECK(!process);
    OK(same.signal(SIGKILL));
    pollfd item{same.get_fd(), POLLIN, 0};
    CHECK(poll(&item, 1, static_cast<int>(patience_ms)) == 1);
    const auto ended = same.wait(patience_ms);
    OK(ended);
    CHECK(ended->kind == VUF_BACKEND_EXIT_SIGNAL);
    CHECK(ended->value == SIGKILL);
    OK(same.terminate());

    vuf::backend_process other = started(files);
    CHECK(other.terminate(patience_ms)->kind != VUF_BACKEND_EXIT_RUNNING);
    other = started(files);
    const pid_t pid = other.get_pid();
    CHECK(kill(pid, 0) == 0);
    vuf::backend_process last(other.release());
    last.free(); /* kills it, and leaves no zombie */
    CHECK(kill(pid, 0) == -1);
    CHECK(vuf::backend_process::start("/nowhere/back-end").error() ==
          std::errc::no_such_file_or_directory);
}

TEST_CASE("a device has the process that serves it")
{
    const fd_guard guard;
    const place files;
    if (!processes()) {
        return;
    }
    vuf::backend_process process = started(files);
    auto options = vuf::make<vuf_device_options>();
    options.num_rings = 1;
    options.on_unfenced = VUF_ON_UNFENCED_KILL;
    auto device = vuf::device::open_fd(vuf::unique_fd(), options);
    OK(device);
    OK(device->set_process(process));
    CHECK(device->set_process(process).error() == vuf::errc::state);
    OK(device->wait(patience_ms));
    CHECK(device->get_info()->peer_pid == process.get_pid());
}

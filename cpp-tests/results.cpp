/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Codes, results, descriptors and structs: what needs no back-end. */
#include "support.hpp"

#include <array>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <sys/socket.h>
#include <type_traits>
#include <unistd.h>

namespace {

template <class T>
constexpr bool owns = std::is_nothrow_move_constructible_v<T> &&
                      std::is_nothrow_move_assignable_v<T> && !std::is_copy_constructible_v<T> &&
                      !std::is_copy_assignable_v<T> && std::is_nothrow_default_constructible_v<T>;

static_assert(owns<vuf::client> && owns<vuf::device> && owns<vuf::memory_group>);
static_assert(owns<vuf::unique_fd>);
static_assert(sizeof(vuf::client) == sizeof(void *) && sizeof(vuf::unique_fd) == sizeof(int));
static_assert(!std::is_convertible_v<int, vuf::unique_fd>);
static_assert(!std::is_convertible_v<vuf_client *, vuf::client>);
static_assert(std::is_nothrow_move_constructible_v<vuf::result<vuf::client>>);
static_assert(std::is_error_code_enum_v<vuf::errc>);
static_assert(std::is_error_condition_enum_v<vuf::error_class>);

std::error_code code(int number) { return {number, vuf::category()}; }

bool is_open(int fd) { return fcntl(fd, F_GETFD) >= 0; }

/* A client that nobody answers. */
vuf::client alone()
{
    int ends[2] = {-1, -1};
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    const vuf::unique_fd other(ends[1]);
    auto made = vuf::client::from_fd(vuf::unique_fd(ends[0]));
    OK(made);
    return *std::move(made);
}

} // namespace

TEST_CASE("codes are those of C, and compare with what they mean")
{
    CHECK(code(-ETIMEDOUT) == std::errc::timed_out);
    CHECK(code(-EINVAL) == std::errc::invalid_argument);
    CHECK(code(-EINVAL) != std::errc::timed_out);
    CHECK(code(VUF_E_NACK) == vuf::errc::nack);
    CHECK(code(VUF_E_NACK) != vuf::errc::poisoned);
    CHECK(code(-ETIMEDOUT).default_error_condition().category() == std::generic_category());
    CHECK(code(VUF_E_PANIC).default_error_condition().category() == vuf::category());
    /* The largest errno, and the number behind it. */
    CHECK(code(-4095).default_error_condition().value() == 4095);
    CHECK(code(-4096).default_error_condition().value() == -4096);
    CHECK(!code(0));
    CHECK(code(VUF_E_STATE).message() == vuf_strerror(VUF_E_STATE));
    CHECK(std::string(vuf::category().name()) == "vhost_user_frontend");

    const std::array<std::pair<vuf::errc, int>, 7> numbers{{
        {vuf::errc::disconnected, VUF_E_DISCONNECTED},
        {vuf::errc::protocol, VUF_E_PROTOCOL},
        {vuf::errc::nack, VUF_E_NACK},
        {vuf::errc::not_negotiated, VUF_E_NOT_NEGOTIATED},
        {vuf::errc::poisoned, VUF_E_POISONED},
        {vuf::errc::state, VUF_E_STATE},
        {vuf::errc::panic, VUF_E_PANIC},
    }};
    for (const auto &[name, number] : numbers) {
        CHECK(make_error_code(name) == code(number));
    }
}

TEST_CASE("every code has a class to compare with")
{
    CHECK(code(-ECONNREFUSED) == vuf::error_class::transport);
    CHECK(code(VUF_E_NACK) == vuf::error_class::refused);
    CHECK(code(VUF_E_PROTOCOL) == vuf::error_class::protocol);
    CHECK(code(-EINVAL) == vuf::error_class::local);
    CHECK(code(-EINVAL) != vuf::error_class::transport);
    CHECK(code(0) != vuf::error_class::local);
    /* Only our codes have one. */
    CHECK(std::error_code(-EINVAL, std::generic_category()) != vuf::error_class::local);
    const std::error_condition condition = vuf::error_class::refused;
    CHECK(condition.message() == "the back-end refused");
    CHECK(std::string(condition.category().name()) == "vhost_user_frontend class");
}

TEST_CASE("a result has the words and fields of its own failure")
{
    const fd_guard guard;
    vuf::client client = alone();
    const auto first = client.set_vring_num(9, 3);
    const vuf::result<void> second(vuf_client_set_features(client.native_handle(), 1));
    const auto third = vuf::client().get_features();
    CHECK(!first);
    CHECK(!first.has_value());
    CHECK(first.code() == -EINVAL);
    CHECK(first.error() == std::errc::invalid_argument);
    CHECK(first.info().code == -EINVAL);
    CHECK(first.info().request == VUF_REQUEST_SET_VRING_NUM);
    CHECK(first.info().ring == 9);
    CHECK(std::string(first.message()).find("SET_VRING_NUM") != std::string::npos);
    CHECK(second.error() == vuf::errc::state);
    CHECK(second.info().request == VUF_REQUEST_SET_FEATURES);
    CHECK(std::string(second.message()).find("SET_FEATURES") != std::string::npos);
    CHECK(std::string(third.message()).find("client is NULL") != std::string::npos);
    CHECK(*third == 0);

    /* One that is not this thread's last failure. */
    const vuf::result<int> other(VUF_E_NACK, 7);
    CHECK(std::string(other.message()) == vuf_strerror(VUF_E_NACK));
    CHECK(other.info().code == VUF_E_NACK);
    CHECK(other.info().error_class == VUF_CLASS_REFUSED);
    CHECK(other.info().ring == -1);
    CHECK(*other == 7);

    const vuf::result<int> good(0, 5);
    CHECK(good);
    CHECK(*good == 5);
    CHECK(!good.error());
    CHECK(std::string(good.message()).empty());
    CHECK(good.info().code == 0);
    CHECK(good.info().error_class == VUF_CLASS_NONE);
}

#ifdef __cpp_exceptions
TEST_CASE("value() throws what failed")
{
    const fd_guard guard;
    vuf::client client = alone();
    CHECK_THROWS_AS(client.set_vring_num(9, 3).value(), vuf::error);
    try {
        client.set_vring_num(9, 3).value();
        FAIL("nothing was thrown");
    } catch (const std::system_error &caught) {
        CHECK(caught.code() == std::errc::invalid_argument);
        CHECK(caught.code() == vuf::error_class::local);
        CHECK(std::string(caught.what()).find("SET_VRING_NUM") != std::string::npos);
    }
    auto failed = client.get_vring_base(VUF_MAX_RING_INDEX + 1);
    CHECK(!client.set_features(1));
    try {
        static_cast<void>(failed.value());
        FAIL("nothing was thrown");
    } catch (const vuf::error &caught) {
        CHECK(caught.info().request == VUF_REQUEST_GET_VRING_BASE);
        CHECK(std::string(caught.what()).find("GET_VRING_BASE") != std::string::npos);
    }
    CHECK_THROWS_AS(static_cast<void>(std::as_const(failed).value()), vuf::error);
    CHECK_THROWS_AS(static_cast<void>(std::move(failed).value()), vuf::error);

    vuf::result<std::string> good(0, "good");
    CHECK(good.value() == "good");
    good.value() += " and better";
    CHECK(good->size() == 15);
    CHECK(std::as_const(good).value() == "good and better");
    CHECK(std::move(good).value() == "good and better");
    CHECK_NOTHROW(vuf::result<void>(0).value());
}
#endif

TEST_CASE("a descriptor is closed once")
{
    const fd_guard guard;
    int number = -1;
    {
        vuf::unique_fd one(dup(0));
        number = one.get();
        vuf::unique_fd two(std::move(one));
        CHECK(!one);
        CHECK(two.get() == number);
        vuf::unique_fd three(dup(0));
        const int old = three.get();
        three = std::move(two);
        CHECK(!is_open(old));
        CHECK(three.get() == number);
        auto &same = three;
        three = std::move(same);
        CHECK(three.get() == number);
        CHECK(is_open(number));
        errno = ENOENT;
        three.reset();
        CHECK(errno == ENOENT);
        CHECK(!is_open(number));
        vuf::unique_fd four(dup(0));
        number = four.release();
        CHECK(!four);
    }
    CHECK(is_open(number));
    close(number);
}

TEST_CASE("structs begin as their documentation wants them")
{
    const auto check_size = [](const auto &made) { CHECK(made.size == sizeof made); };
    check_size(vuf::make<vuf_client_options>());
    check_size(vuf::make<vuf_device_options>());
    check_size(vuf::make<vuf_device_event>());
    check_size(vuf::make<vuf_device_info>());
    check_size(vuf::make<vuf_quiet>());
    check_size(vuf::make<vuf_counters>());
    check_size(vuf::make<vuf_shmem_config>());
    check_size(vuf::make<vuf_crypto_session>());
    check_size(vuf::make<vuf_submit_result>());
    check_size(vuf::make<vuf_backend_ops>());
    check_size(vuf::make<vuf_error_info>());
    /* Theirs is another size, of a region or a ring. */
    constexpr auto region = vuf::make<vuf_mem_region>();
    CHECK(region.size == 0);
    CHECK(region.fd == -1);
    CHECK(vuf::make<vuf_iotlb>().size == 0);
    const auto ring = vuf::make<vuf_ring>();
    CHECK(ring.size == 0);
    CHECK(ring.kick_fd == -1);
    CHECK(ring.call_fd == -1);
    CHECK(ring.err_fd == -1);
    CHECK(vuf::make<vuf_op>().fd == -1);
    CHECK(vuf::make<vuf_vring_addr>().flags == 0);
    static_assert(vuf::bit(63) == UINT64_C(1) << 63);
}

TEST_CASE("arrays are taken in every form")
{
    const auto first = [](vuf::view<const std::uint32_t> list) {
        return list.size() == 0 ? 0u : list.data()[0] * 10 + static_cast<unsigned>(list.size());
    };
    const std::uint32_t one = 4;
    const std::uint32_t array[] = {5, 6};
    std::vector<std::uint32_t> many{7, 8, 9};
    CHECK(first(one) == 41);
    CHECK(first(array) == 52);
    CHECK(first(many) == 73);
    CHECK(first(std::as_const(many)) == 73);
    CHECK(first(std::array<std::uint32_t, 1>{3}) == 31);
    CHECK(first({array, 1}) == 51);
    CHECK(first({}) == 0);
    static_assert(!std::is_constructible_v<vuf::view<std::uint32_t>, const std::vector<std::uint32_t> &>);
    static_assert(!std::is_constructible_v<vuf::view<const std::uint32_t>, std::vector<char> &>);
}

TEST_CASE("texts are taken in every form, and not cut off")
{
    const auto code_of = [](vuf::c_text path) { return vuf::client::connect(path).code(); };
    CHECK(code_of("/nowhere/socket") == -ENOENT);
    CHECK(code_of(std::string("/nowhere/socket")) == -ENOENT);
    CHECK(code_of(std::filesystem::path("/nowhere/socket")) == -ENOENT);
    CHECK(code_of(nullptr) == -EINVAL);
    CHECK(code_of(std::string("/nowhere\0/socket", 16)) == -EINVAL);
    CHECK(code_of(std::filesystem::path(std::string("/nowhere\0/socket", 16))) == -EINVAL);
}

TEST_CASE("a file in memory is given")
{
    const fd_guard guard;
    auto fd = vuf::memfd_create("cpp", 4096, 0, VUF_MEMFD_SEAL);
    OK(fd);
    CHECK(guard.more() == 1);
    CHECK(fcntl(fd->get(), F_GETFD) == FD_CLOEXEC);
    CHECK(lseek(fd->get(), 0, SEEK_END) == 4096);
    CHECK(vuf::memfd_create(std::string("none"), 0).error() == std::errc::invalid_argument);
}

TEST_CASE("marks of a dirty log are moved")
{
    std::array<std::uint64_t, 2> log{0x8000000000000001, 0}, bitmap{};
    const auto moved = vuf::dirty_log_sync(log.data(), sizeof log, 0, 128, bitmap.data());
    OK(moved);
    CHECK(*moved == 2);
    CHECK(bitmap[0] == 0x8000000000000001);
    CHECK(log[0] == 0);
    CHECK(!vuf::dirty_log_sync(log.data(), sizeof log, 1, 128, bitmap.data()));
}

TEST_CASE("without a handle every call is refused")
{
    const fd_guard guard;
    vuf::client client;
    vuf::device device;
    vuf::memory_group group;
    CHECK(!client);
    CHECK(!device);
    CHECK(!group);
    CHECK(client.get_fd() == -EINVAL);
    CHECK(client.backend_fd() == -EINVAL);
    CHECK(device.get_fd() == -EINVAL);
    CHECK(client.abort().code() == -EINVAL);
    CHECK(device.process().code() == -EINVAL);
    CHECK(group.wait(1).code() == -EINVAL);
    CHECK(group.join(device).code() == -EINVAL);
    /* What was to be taken is still there. */
    vuf::unique_fd fd(dup(0));
    const int number = fd.get();
    CHECK(vuf::client::from_fd(std::move(fd)).error() == std::errc::not_a_socket);
    CHECK(fd.get() == number);
    CHECK(vuf::device::open_fd(std::move(fd)).error() == std::errc::not_a_socket);
    CHECK(fd.get() == number);
    CHECK(!device.set_fd(std::move(fd)));
    CHECK(fd.get() == number);
}

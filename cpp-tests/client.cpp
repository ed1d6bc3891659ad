/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Each function of the client against the scripted back-end: what is sent, as the trace
   words it, and what comes back; who owns the descriptors; callbacks. */
#include "support.hpp"

#include <array>
#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <exception>
#include <functional>
#include <linux/virtio_config.h>
#include <stdexcept>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

namespace {

constexpr std::uint64_t page = 4096;
constexpr std::uint64_t features = vuf::bit(VUF_F_PROTOCOL_FEATURES) |
                                   vuf::bit(VIRTIO_F_VERSION_1) |
                                   vuf::bit(VIRTIO_F_ACCESS_PLATFORM) | vuf::bit(3 /* MTU */);

/* All but what changes the form of other requests, or excludes others. */
std::uint64_t all_protocol_features()
{
    return vuf_supported_protocol_features() &
           ~(vuf::bit(VUF_PROTOCOL_F_XEN_MMAP) | vuf::bit(VUF_PROTOCOL_F_GPA_ADDRESSES));
}

/* A client that has agreed all that the back-end offers of these. */
vuf::client negotiated(const program &back_end, std::uint64_t wanted = all_protocol_features())
{
    auto client = vuf::client::connect(back_end.path());
    OK(client);
    const auto offered = client->get_features();
    OK(offered);
    REQUIRE((*offered & features) == features);
    const auto protocol = client->get_protocol_features();
    OK(protocol);
    OK(client->set_protocol_features(*protocol & wanted));
    OK(client->set_owner());
    OK(client->set_features(features));
    return *std::move(client);
}

vuf_mem_region region_at(std::uint64_t guest_addr, int fd)
{
    auto region = vuf::make<vuf_mem_region>();
    region.guest_addr = guest_addr;
    region.size = 2 * page;
    region.user_addr = guest_addr + 0x7000000;
    region.fd = fd;
    return region;
}

/* A file that would do as memory, log or buffer. */
vuf::unique_fd file()
{
    auto made = vuf::memfd_create("file", 16 * page);
    OK(made);
    return *std::move(made);
}

/* Both ends of a connection. */
std::pair<vuf::unique_fd, vuf::unique_fd> socket_pair()
{
    int ends[2] = {-1, -1};
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    return {vuf::unique_fd(ends[0]), vuf::unique_fd(ends[1])};
}

constexpr const char *everything = "device features +33 +3";

/* A call, and the message that it sends. */
struct sent {
    std::function<bool(vuf::client &)> call;
    const char *line;
};

void check_all(vuf::client &client, const std::vector<sent> &calls)
{
    tracer trace;
    OK(client.set_trace(trace));
    for (const sent &one : calls) {
        trace.lines.clear();
        CAPTURE(std::string(one.line));
        CHECK(one.call(client));
        CHECK(trace.first() == one.line);
    }
    OK(client.set_trace(nullptr));
    trace.lines.clear();
    OK(client.set_vring_num(0, 256));
    CHECK(trace.lines.empty());
}

} // namespace

TEST_CASE("every request arrives as it was meant")
{
    const fd_guard guard;
    const program back_end =
        program::mock({everything, "device config-size 60", "device shmem 3=0x10000",
                       "device base 3=0x1234", "device protocol-features +SHMEM +DEVICE_STATE"});
    vuf::client client = negotiated(back_end);
    const vuf::unique_fd memory = file();
    const vuf::unique_fd event{eventfd(0, EFD_CLOEXEC)};
    const int fd = event.get();
    const std::array<vuf_mem_region, 2> regions{region_at(0x100000, memory.get()),
                                                region_at(0x200000, memory.get())};
    const auto extra = region_at(0x300000, memory.get());
    auto addr = vuf::make<vuf_vring_addr>();
    addr.flags = VUF_VRING_F_LOG;
    addr.descriptor = 0x7100000;
    addr.available = 0x7100400;
    addr.used = 0x7100800;
    addr.log = 0x100800;
    auto iotlb = vuf::make<vuf_iotlb>();
    iotlb.iova = 0x1000;
    iotlb.size = 0x2000;
    iotlb.user_addr = 0x7100000;
    iotlb.perm = VUF_ACCESS_RO;
    iotlb.type = VUF_IOTLB_UPDATE;
    auto session = vuf::make<vuf_crypto_session>();
    session.op_code = 2; /* VIRTIO_CRYPTO_CIPHER_CREATE_SESSION */
    session.sym.key_len = 16;
    const auto ends = socket_pair();
    const int end = ends.first.get();

    check_all(
        client,
        {
            {[](auto &c) { return *c.get_queue_num() != 0; }, "> GET_QUEUE_NUM"},
            {[](auto &c) { return *c.get_max_mem_slots() != 0; }, "> GET_MAX_MEM_SLOTS"},
            {[&](auto &c) { return !!c.set_mem_table(regions); },
             "> SET_MEM_TABLE need-reply regions=2 fds=2 [0x100000+0x2000@0x7100000] "
             "[0x200000+0x2000@0x7200000]"},
            {[&](auto &c) { return !!c.add_mem_region(extra); },
             "> ADD_MEM_REG need-reply guest-addr=0x300000 region-size=8192 "
             "user-addr=0x7300000 mmap-offset=0 fds=1"},
            {[&](auto &c) { return !!c.remove_mem_region(extra); },
             "> REM_MEM_REG need-reply guest-addr=0x300000 region-size=8192 "
             "user-addr=0x7300000 mmap-offset=0"},
            {[&](auto &c) { return !!c.send_iotlb(iotlb); },
             "> IOTLB_MSG need-reply iova=4096 iotlb-size=8192 uaddr=0x7100000 perm=1 type=2"},
            {[&](auto &c) { return !!c.post_iotlb(iotlb); },
             "> IOTLB_MSG need-reply iova=4096 iotlb-size=8192 uaddr=0x7100000 perm=1 type=2"},
            {[&](auto &c) { return !!c.set_log_base(page, 0, memory.get()); },
             "> SET_LOG_BASE mmap-size=4096 mmap-offset=0 fds=1"},
            {[&](auto &c) { return !!c.set_log_fd(fd); }, "> SET_LOG_FD need-reply fds=1"},
            {[](auto &c) { return !!c.set_vring_num(3, 256); },
             "> SET_VRING_NUM need-reply index=3 num=256"},
            {[](auto &c) { return !!c.set_vring_base(3, 0x1234); },
             "> SET_VRING_BASE need-reply index=3 num=4660"},
            {[&](auto &c) { return !!c.set_vring_addr(3, addr); },
             "> SET_VRING_ADDR need-reply index=3 flags=1 desc=0x7100000 used=0x7100800 "
             "avail=0x7100400 log=0x100800"},
            {[](auto &c) { return !!c.set_vring_endian(3, VUF_VRING_BIG_ENDIAN); },
             "> SET_VRING_ENDIAN need-reply index=3 num=1"},
            {[&](auto &c) { return !!c.set_vring_call(3, fd); },
             "> SET_VRING_CALL need-reply index=3 no-fd=0 fds=1"},
            {[](auto &c) { return !!c.set_vring_err(3, -1); },
             "> SET_VRING_ERR need-reply index=3 no-fd=1"},
            {[&](auto &c) { return !!c.set_vring_kick(3, fd); },
             "> SET_VRING_KICK need-reply index=3 no-fd=0 fds=1"},
            {[](auto &c) { return !!c.vring_kick(3); }, "> VRING_KICK need-reply index=3 num=0"},
            {[](auto &c) { return !!c.set_vring_enable(3, true); },
             "> SET_VRING_ENABLE need-reply index=3 num=1"},
            {[](auto &c) { return *c.get_vring_base(3) == 0x1234; },
             "> GET_VRING_BASE index=3 num=0"},
            {[](auto &c) { return !!c.set_config(8, 1, "abc", 3); },
             "> SET_CONFIG need-reply offset=8 config-size=3 flags=1"},
            {[](auto &c) {
                 const auto got = c.template get_config<std::array<char, 3>>(8, 0);
                 return got && *got == std::array<char, 3>{'a', 'b', 'c'};
             },
             "> GET_CONFIG offset=8 config-size=3 flags=0"},
            {[](auto &c) {
                 char got[2] = {0, 0};
                 return c.get_config(9, 0, got, sizeof got) && got[0] == 'b' && got[1] == 'c';
             },
             "> GET_CONFIG offset=9 config-size=2 flags=0"},
            {[&](auto &c) { return !!c.set_backend_req_fd(end); },
             "> SET_BACKEND_REQ_FD need-reply fds=1"},
            {[&](auto &c) {
                 const auto own = c.set_device_state_fd(VUF_TRANSFER_DIRECTION_SAVE, 0, end);
                 return own && !*own;
             },
             "> SET_DEVICE_STATE_FD direction=0 phase=0 fds=1"},
            {[](auto &c) { return !!c.check_device_state(); }, "> CHECK_DEVICE_STATE"},
            {[](auto &c) { return !!c.set_status(0xf); }, "> SET_STATUS need-reply value=15"},
            {[](auto &c) { return *c.get_status() == 0xf; }, "> GET_STATUS"},
            {[](auto &c) {
                 const auto got = c.get_shmem_config();
                 return got && got->nregions == 1 && got->memory_sizes[3] == 0x10000;
             },
             "> GET_SHMEM_CONFIG"},
            {[](auto &c) { return !!c.send_rarp(0x563412005452); },
             "> SEND_RARP need-reply value=0x563412005452"},
            {[](auto &c) { return !!c.net_set_mtu(9000); }, "> NET_SET_MTU need-reply value=9000"},
            {[&](auto &c) { return !!c.gpu_set_socket(end); }, "> GPU_SET_SOCKET need-reply fds=1"},
            {[&](auto &c) { return *c.create_crypto_session(session) == 1; },
             "> CREATE_CRYPTO_SESSION op=2 session=0"},
            {[](auto &c) { return !!c.close_crypto_session(1); },
             "> CLOSE_CRYPTO_SESSION need-reply value=1"},
            {[](auto &c) { return !!c.reset_device(); }, "> RESET_DEVICE need-reply"},
            {[](auto &c) { return !!c.reset_owner(); }, "> RESET_OWNER need-reply"},
        });
}

TEST_CASE("a postcopy migration from its beginning to its end")
{
    const fd_guard guard;
    const program back_end = program::mock({everything});
    vuf::client client = negotiated(
        back_end, all_protocol_features() & ~vuf::bit(VUF_PROTOCOL_F_CONFIGURE_MEM_SLOTS));
    const vuf::unique_fd memory = file();
    const vuf_mem_region regions[] = {region_at(0x100000, memory.get()),
                                      region_at(0x200000, memory.get())};
    vuf::unique_fd faults;
    check_all(client,
              {
                  {[&](auto &c) {
                       auto given = c.postcopy_advise();
                       faults = *std::move(given);
                       return faults && fcntl(faults.get(), F_GETFD) == FD_CLOEXEC;
                   },
                   "> POSTCOPY_ADVISE"},
                  {[](auto &c) { return !!c.postcopy_listen(); }, "> POSTCOPY_LISTEN need-reply"},
                  {[&](auto &c) {
                       const auto bases = c.postcopy_set_mem_table(regions);
                       return bases && (*bases)[0] == 0x7e0000000000 &&
                              (*bases)[1] == 0x7e1000000000 && (*bases)[2] == 0;
                   },
                   "> SET_MEM_TABLE regions=2 fds=2 [0x100000+0x2000@0x7100000] "
                   "[0x200000+0x2000@0x7200000]"},
                  {[](auto &c) { return !!c.postcopy_ack_mem_table(); }, "> SET_MEM_TABLE regions=0"},
                  {[](auto &c) { return !!c.postcopy_end(); }, "> POSTCOPY_END need-reply"},
              });
    CHECK(client.set_mem_table({regions, 9}).error() == std::errc::invalid_argument);
}

TEST_CASE("what is given is owned")
{
    const fd_guard guard;
    const program back_end =
        program::mock({everything, "device object 00112233-4455-6677-8899-aabbccddeeff",
                       "device protocol-features +GET_VRING_BASE_INFLIGHT "
                       "+GET_VRING_BASE_SKIP_DRAIN +DEVICE_STATE",
                       "device state-channel given", "device base 1=7"});
    vuf::client client = negotiated(back_end);
    const int before = guard.more();
    const vuf::uuid object{0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77,
                           0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff};
    check_all(
        client,
        {
            {[&](auto &c) {
                 const auto fd = c.get_shared_object(object);
                 return fd && *fd && guard.more() == before + 1;
             },
             "> GET_SHARED_OBJECT uuid=0x112233445566778899aabbccddeeff"},
            {[&](auto &c) {
                 const auto buffer = c.get_inflight_fd(2, 64);
                 return buffer && buffer->fd && buffer->description.mmap_size != 0 &&
                        buffer->description.num_queues == 2 && guard.more() == before + 1;
             },
             "> GET_INFLIGHT_FD mmap-size=0 mmap-offset=0 queues=2 queue-size=64"},
            {[&](auto &c) {
                 vuf::inflight_buffer buffer;
                 buffer.description.mmap_size = 4096;
                 buffer.description.num_queues = 3;
                 buffer.description.queue_size = 32;
                 buffer.fd = file();
                 return !!c.set_inflight_fd(buffer);
             },
             "> SET_INFLIGHT_FD need-reply mmap-size=4096 mmap-offset=0 queues=3 queue-size=32 "
             "fds=1"},
            {[](auto &c) { return *c.get_vring_base_skip_drain(1) == 7; },
             "> GET_VRING_BASE_SKIP_DRAIN index=1 num=0"},
        });
    CHECK(guard.more() == before);
    auto objects = client.get_shared_object(vuf::uuid{});
    CHECK(objects.error() == vuf::errc::nack);
    CHECK(objects.error() == vuf::error_class::refused);
    CHECK(!*objects);
    CHECK(guard.more() == before);
}

TEST_CASE("a back-end may choose the channel for its state")
{
    const fd_guard guard;
    const program back_end = program::mock(
        {everything, "device protocol-features +DEVICE_STATE", "device state-channel own"});
    vuf::client client = negotiated(back_end);
    const int before = guard.more();
    {
        const auto ends = socket_pair();
        const auto own =
            client.set_device_state_fd(VUF_TRANSFER_DIRECTION_SAVE, 0, ends.first.get());
        OK(own);
        CHECK(*own);
        CHECK(guard.more() == before + 3);
    }
    CHECK(guard.more() == before);
}

TEST_CASE("a list of requests tells what became of them")
{
    const fd_guard guard;
    const program back_end = program::mock({everything, "on SET_VRING_BASE: refuse 5"});
    vuf::client client = negotiated(back_end);
    std::vector<vuf_op> ops(3, vuf::make<vuf_op>());
    ops[0].request = VUF_REQUEST_SET_VRING_NUM;
    ops[0].value = 256;
    ops[1].request = VUF_REQUEST_SET_VRING_BASE;
    ops[2].request = VUF_REQUEST_SET_VRING_CALL;
    const auto good = client.submit(ops[0]);
    OK(good);
    CHECK(good->applied == 1);
    CHECK(good->failed == -1);
    const auto bad = client.submit(ops);
    CHECK(bad.error() == vuf::errc::nack);
    CHECK(bad->failed == 1);
    CHECK(bad->refused == 1);
    CHECK(bad->value == 5);
    CHECK(bad.info().value == 5);
    CHECK(bad.info().request == VUF_REQUEST_SET_VRING_BASE);
    OK(client.submit({}));
}

TEST_CASE("a client has one owner")
{
    const fd_guard guard;
    const program back_end = program::mock({everything});
    vuf::client client = negotiated(back_end);
    vuf_client *const handle = client.native_handle();
    const int fd = client.get_fd();
    CHECK(fd >= 0);
    CHECK(client);

    vuf::client other(std::move(client));
    CHECK(!client);
    CHECK(client.get_queue_num().code() == -EINVAL);
    CHECK(other.native_handle() == handle);
    CHECK(other.get_fd() == fd);
    OK(other.get_queue_num());
    const auto counters = other.get_counters();
    OK(counters);
    CHECK(counters->requests_sent == 6);

    /* What an assignment takes the place of is freed. */
    auto ends = socket_pair();
    const int before = guard.more();
    vuf::client third = vuf::client::from_fd(std::move(ends.first)).operator*();
    CHECK(!ends.first);
    CHECK(guard.more() == before);
    third = std::move(other);
    CHECK(guard.more() == before - 1);
    OK(third.get_queue_num());

    vuf::client fourth(third.release());
    CHECK(!third);
    OK(fourth.get_queue_num());
    OK(fourth.abort());
    CHECK(fourth.get_queue_num().error() == std::errc::operation_canceled);
    fourth.free();
    CHECK(!fourth);
    CHECK(guard.more() == before - 2);
}

TEST_CASE("connections are accepted, and refusals told")
{
    const fd_guard guard;
    auto [one, other] = socket_pair();
    sockaddr_un address{};
    address.sun_family = AF_UNIX; /* without a name: the kernel chooses one */
    socklen_t length = sizeof address.sun_family;
    auto *const name = reinterpret_cast<sockaddr *>(&address);
    const vuf::unique_fd listener(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const vuf::unique_fd peer(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    REQUIRE(bind(listener.get(), name, length) == 0);
    REQUIRE(listen(listener.get(), 1) == 0);
    auto options = vuf::make<vuf_client_options>();
    options.connect_timeout_ms = 1;
    const auto late = vuf::client::accept(listener.get(), options);
    CHECK(late.error() == std::errc::timed_out);
    CHECK(late.error() == vuf::error_class::transport);
    CHECK(!*late);
    length = sizeof address;
    REQUIRE(getsockname(listener.get(), name, &length) == 0);
    REQUIRE(connect(peer.get(), name, length) == 0);
    OK(vuf::client::accept(listener.get()));

    options.on_timeout = 77;
    const int number = one.get();
    CHECK(vuf::client::from_fd(std::move(one), options).code() == -EINVAL);
    CHECK(one.get() == number);
    OK(vuf::client::from_fd(std::move(one)));
    CHECK(!one);
    /* Zeros are not options: their size is missing. */
    CHECK(vuf::client::from_fd(std::move(other), vuf_client_options{}).code() == -EINVAL);
    CHECK(other);
}

/* ---- callbacks ---- */

namespace {

/* Serves all that there is, and writes it down. */
struct handler {
    std::vector<std::string> seen;
    vuf::unique_fd kept;
    int result = 0;

    int note(const std::string &text)
    {
        seen.push_back(text);
        return result;
    }
    int iotlb_miss(std::uint64_t iova, std::uint32_t perm)
    {
        return note("miss " + std::to_string(iova) + " " + std::to_string(perm));
    }
    int iotlb_access_fail(std::uint64_t iova, std::uint64_t size, std::uint32_t perm)
    {
        return note("fail " + std::to_string(iova) + " " + std::to_string(size) + " " +
                    std::to_string(perm));
    }
    int host_notifier(std::uint32_t ring, vuf::unique_fd fd, std::uint64_t offset,
                      std::uint64_t size)
    {
        return note("notifier " + std::to_string(ring) + (fd ? " fd " : " none ") +
                    std::to_string(offset) + " " + std::to_string(size));
    }
    int shared_object_lookup(const vuf::uuid &object, vuf::unique_fd &fd)
    {
        fd = file();
        return note("lookup " + std::to_string(object[0]) + " " + std::to_string(object[15]));
    }
    int shmem_map(const vuf_shmem_area &area, vuf::unique_fd fd)
    {
        kept = std::move(fd);
        return note("map " + std::to_string(area.shmid) + " " + std::to_string(area.len));
    }
    int shmem_unmap(const vuf_shmem_area &area)
    {
        kept.reset();
        return note("unmap " + std::to_string(area.shmid) + " " + std::to_string(area.len));
    }
    void config_changed() { note("config"); }
    void vring_call(std::uint32_t ring) { note("call " + std::to_string(ring)); }
    void vring_err(std::uint32_t ring) { note("err " + std::to_string(ring)); }
    void shared_object_added(const vuf::uuid &object) { note("added " + std::to_string(object[1])); }
    void shared_object_removed(const vuf::uuid &object)
    {
        note("removed " + std::to_string(object[1]));
    }
};

/* Serves one request, by a function that is static. */
struct only_calls {
    static void vring_call(std::uint32_t) {}
};

constexpr const char *id = "uuid=04112233-4455-6677-8899-aabbccddee05";

} // namespace

TEST_CASE("what has no function is not served")
{
    const vuf_backend_ops all = vuf::backend_ops<handler>, calls = vuf::backend_ops<only_calls>;
    CHECK(calls.size == sizeof calls);
    CHECK((calls.vring_call != nullptr));
    CHECK((calls.vring_err == nullptr));
    CHECK((calls.shmem_map == nullptr));
    CHECK((all.vring_err != nullptr));
    CHECK((all.shmem_map != nullptr));
}

TEST_CASE("each request of a back-end runs its function")
{
    const fd_guard guard;
    struct asked {
        std::string send, seen;
        bool waits;
    };
    const std::vector<asked> all{
        {"IOTLB_MSG iova=0x1000 perm=3 type=1", "miss 4096 3", true},
        {"IOTLB_MSG iova=0x2000 iotlb-size=0x1000 perm=2 type=4", "fail 8192 4096 2", true},
        {"VRING_HOST_NOTIFIER_MSG index=1 area-size=4096 area-offset=8192",
         "notifier 1 fd 8192 4096", true},
        {"VRING_HOST_NOTIFIER_MSG index=1 no-fd=1", "notifier 1 none 0 0", true},
        {std::string("SHARED_OBJECT_LOOKUP ") + id, "lookup 4 5", true},
        {"SHMEM_MAP shmid=3 len=0x2000 flags=1", "map 3 8192", true},
        {"SHMEM_UNMAP shmid=3 len=0x2000", "unmap 3 8192", true},
        {"CONFIG_CHANGE_MSG", "config", false},
        {"VRING_CALL index=2", "call 2", false},
        {"VRING_ERR index=1", "err 1", false},
        {std::string("SHARED_OBJECT_ADD ") + id, "added 17", false},
        {std::string("SHARED_OBJECT_REMOVE ") + id, "removed 17", false},
    };
    std::vector<std::string> rules;
    for (const asked &one : all) {
        rules.push_back("on GET_QUEUE_NUM nth=" + std::to_string(rules.size() + 1) + ": send " +
                        one.send + " need-reply answer=0");
    }
    const program back_end = program::mock(
        {everything, "device shmem 3=0x10000", "device protocol-features +SHMEM",
         rules[0].c_str(), rules[1].c_str(), rules[2].c_str(), rules[3].c_str(), rules[4].c_str(),
         rules[5].c_str(), rules[6].c_str(), rules[7].c_str(), rules[8].c_str(), rules[9].c_str(),
         rules[10].c_str(), rules[11].c_str(),
         /* The one that is refused, with what it had given. */
         "on GET_QUEUE_NUM nth=13: send SHARED_OBJECT_LOOKUP uuid=04112233-4455-6677-8899-"
         "aabbccddee05 need-reply answer=0xfffffffffffffffe"});
    vuf::client client = negotiated(back_end);
    handler served;
    CHECK(client.backend_fd() == VUF_E_STATE);
    OK(client.get_shmem_config());
    OK(client.open_backend_channel(served));
    CHECK(client.open_backend_channel(served).error() == vuf::errc::state);
    CHECK(client.backend_fd() >= 0);
    const int before = guard.more();
    for (const asked &one : all) {
        CAPTURE(one.send);
        served.seen.clear();
        OK(client.get_queue_num());
        CHECK(served.seen.size() == (one.waits ? 1 : 0));
        OK(client.process_backend_requests());
        REQUIRE(served.seen.size() == 1);
        CHECK(served.seen.front() == one.seen);
        CHECK(guard.more() == before + (served.kept ? 1 : 0));
    }
    served.result = -ENOENT;
    OK(client.get_queue_num());
    CHECK(guard.more() == before);
    CHECK(client.get_counters()->backend_requests_served == all.size());
    CHECK(client.get_counters()->backend_requests_refused == 1);
}

#ifdef __cpp_exceptions
namespace {

struct throws {
    int iotlb_miss(std::uint64_t, std::uint32_t) { throw std::runtime_error("not mine"); }
};

/* Whether std::terminate ends a child process that runs this: by SIGKILL. Otherwise it
   becomes another program. (Valgrind looks into neither.) */
bool terminates(const std::function<void()> &run)
{
    const pid_t child = fork();
    if (child == 0) {
        std::set_terminate([] { raise(SIGKILL); });
        run();
        execlp("true", "true", nullptr);
        _exit(127);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE((WIFSIGNALED(status) || WEXITSTATUS(status) == 0));
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

} // namespace

TEST_CASE("an exception that a callback lets out ends the program")
{
    const fd_guard guard;
    const program back_end = program::mock(
        {everything, "on GET_QUEUE_NUM: send IOTLB_MSG iova=1 perm=1 type=1 no-wait"});
    CHECK(terminates([&] {
        throws thrower;
        vuf::client client = negotiated(back_end);
        client.open_backend_channel(thrower).value();
        client.get_queue_num().value();
    }));
    CHECK(terminates([&] {
        const auto trace = [](const vuf_trace_record &) { throw 1; };
        vuf::client client = negotiated(back_end);
        client.set_trace(trace).value();
        client.get_status().value();
    }));
    CHECK(!terminates([&] { negotiated(back_end).get_status().value(); }));
}
#endif

/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Devices and groups: real block I/O on the embedded back-end, which dies and comes
   back, and what the scripted back-end asks of a device. */
#include "support.hpp"

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <linux/virtio_config.h>
#include <optional>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

namespace {

enum : int { patience_ms = 20000, io_ms = 10000 };
enum : std::uint32_t { ring_size = 64, block = 4096 };
constexpr std::uint64_t guest_addr = 0x40000000, guest_size = 0x100000;
constexpr std::uint64_t buffer_addr = guest_addr + 0x40000, more_addr = 0x80000000;
/* Part of struct virtio_blk_config. */
constexpr std::uint32_t config_size = 60;

/* The guest: its memory and one ring. */
class guest {
  public:
    explicit guest(std::uint64_t addr = guest_addr)
    {
        REQUIRE(guest_memory_create(&memory, addr, guest_size) == 0);
        REQUIRE(blk_ring_create(&ring, 0, ring_size, &memory, addr) == 0);
    }
    guest(const guest &) = delete;
    guest &operator=(const guest &) = delete;
    ~guest()
    {
        blk_ring_destroy(&ring);
        guest_memory_destroy(&memory);
    }
    vuf_mem_region region() const { return guest_memory_region(&memory); }
    vuf_ring description(std::uint32_t base_mode = VUF_RING_BASE_NEW) const
    {
        return blk_ring_of_device(&ring, base_mode);
    }
    /* A block is written, and read back. */
    void write_and_read(std::uint8_t byte)
    {
        std::array<std::uint8_t, block> wanted;
        wanted.fill(byte);
        void *const data = guest_memory_at(&memory, buffer_addr);
        std::memcpy(data, wanted.data(), block);
        REQUIRE(transfer(VIRTIO_BLK_T_OUT) == VIRTIO_BLK_S_OK);
        std::memset(data, 0, block);
        REQUIRE(transfer(VIRTIO_BLK_T_IN) == VIRTIO_BLK_S_OK);
        CHECK(std::memcmp(data, wanted.data(), block) == 0);
    }

    guest_memory memory{};
    blk_ring ring{};

  private:
    int transfer(std::uint32_t type)
    {
        const int slot = blk_ring_submit(&ring, type, 8, buffer_addr, block);
        return blk_ring_wait(&ring, slot, io_ms, nullptr);
    }
};

vuf_device_options quick_options()
{
    auto options = vuf::make<vuf_device_options>();
    options.num_rings = 1;
    options.config_size = config_size;
    options.first_delay_ms = 2;
    options.max_delay_ms = 20;
    return options;
}

/* Turns the event loop until this happens. */
vuf_device_event until(vuf::device &device, std::uint32_t kind)
{
    for (;;) {
        pollfd item{device.get_fd(), POLLIN, 0};
        REQUIRE(poll(&item, 1, patience_ms) == 1);
        const auto event = device.process();
        OK(event);
        if (!event || event->kind == kind) {
            return *event;
        }
    }
}

void start(vuf::device &device, const guest &driver)
{
    OK(device.set_memory(driver.region()));
    OK(device.wait(patience_ms));
    OK(device.set_features(vuf::bit(VIRTIO_F_VERSION_1)));
    OK(device.start(driver.description()));
    OK(device.wait(patience_ms));
}

std::uint8_t byte_of_disk(const program &back_end, off_t offset)
{
    const vuf::unique_fd file(open(back_end.disk_path().c_str(), O_RDONLY | O_CLOEXEC));
    std::uint8_t byte = 0;
    REQUIRE(pread(file.get(), &byte, 1, offset) == 1);
    return byte;
}

vuf::unique_fd connection(const std::string &path)
{
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
    vuf::unique_fd made(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    REQUIRE(connect(made.get(), reinterpret_cast<const sockaddr *>(&address), sizeof address) == 0);
    return made;
}

} // namespace

TEST_CASE("blocks are written and read through a device")
{
    const fd_guard guard;
    const program back_end = program::disk();
    guest driver;
    auto opened = vuf::device::open(back_end.path(), quick_options());
    OK(opened);
    vuf::device device = *std::move(opened);
    CHECK(device);
    CHECK(device.get_fd() >= 0);
    CHECK(!device.get_counters());
    CHECK(until(device, VUF_DEVICE_EVENT_CONNECTED).code == 0);
    start(device, driver);
    driver.write_and_read(0x5a);
    CHECK(byte_of_disk(back_end, 8 * 512) == 0x5a);

    const auto info = device.get_info();
    OK(info);
    CHECK(info->connected == 1);
    CHECK(info->settled == 1);
    CHECK(info->acked_features == vuf::bit(VIRTIO_F_VERSION_1));
    CHECK(*device.get_memory_state() == VUF_MEMORY_APPLIED);
    const auto counters = device.get_counters();
    OK(counters);
    CHECK(counters->requests_sent > 10);

    /* Another descriptor for calls, while the ring runs: the library writes it once. */
    const vuf::unique_fd call(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    OK(device.set_call(0, call.get()));
    OK(device.wait(patience_ms));
    std::uint64_t count = 0;
    CHECK(read(call.get(), &count, sizeof count) == sizeof count);
    OK(device.set_call(0, driver.ring.call_fd));
    OK(device.wait(patience_ms));
    driver.write_and_read(0x33);

    /* None of the rings, and then all of them. */
    const std::vector<std::uint32_t> none;
    const auto still = device.stop(none, VUF_STOP_DRAIN, patience_ms);
    OK(still);
    OK(device.wait(patience_ms));
    driver.write_and_read(0x44);
    CHECK(!device.get_vring_base(0));
    const auto quiet = device.stop_all(VUF_STOP_DRAIN, patience_ms);
    OK(quiet);
    CHECK(quiet->quiesced == 1);
    CHECK(quiet->bases_valid == 1);
    const auto base = device.get_vring_base(0);
    OK(base);
    CHECK(*base == driver.ring.next_avail);
    OK(device.start(driver.description(VUF_RING_BASE_RESUME)));
    OK(device.wait(patience_ms));
    driver.write_and_read(0x55);
    const std::uint32_t first = 0;
    CHECK(device.stop(first, VUF_STOP_DRAIN, patience_ms)->quiesced == 1);
    CHECK(*device.get_virtio_status(15) == 15);
    CHECK(device.reset(patience_ms)->quiesced == 1);
    CHECK(*device.get_virtio_status(0) == 0);
    CHECK(device.get_quiet()->quiesced == 1);
}

TEST_CASE("a program waits for a back-end that it can use")
{
    const fd_guard guard;
    const program back_end = program::disk();
    auto device = vuf::device::open(back_end.path(), quick_options());
    OK(device);
    CHECK(*device->is_connected() == false);
    CHECK(device->get_offered_features().error() == vuf::errc::state);
    OK(device->wait_connected(patience_ms));
    CHECK(device->get_info()->connected == 1);
    CHECK(*device->is_connected());
    CHECK(*device->get_offered_features() == device->get_info()->offered_features);
    OK(device->wait(patience_ms));
    CHECK(*device->is_settled());
    const auto generation = device->get_generation();
    CHECK(generation->first == generation->second);
    auto options = quick_options();
    options.required_features = vuf::bit(63);
    auto other = vuf::device::open(back_end.path(), options);
    OK(other);
    device->free();
    CHECK(other->wait_connected(patience_ms).error() == vuf::errc::not_negotiated);
}

TEST_CASE("the configuration space is read as a struct")
{
    const fd_guard guard;
    const program back_end = program::disk();
    auto device = vuf::device::open(back_end.path(), quick_options());
    OK(device);
    CHECK(device->read_config<std::uint64_t>().error() == vuf::errc::state);
    OK(device->wait(patience_ms));
    std::uint32_t generation = 77;
    const auto sectors = device->read_config<std::uint64_t>(0, &generation);
    OK(sectors);
    CHECK(*sectors == DISK_SIZE / 512);
    CHECK(generation != 77);
    const std::uint8_t mine[] = {1, 2};
    const auto sent = device->get_counters()->requests_sent;
    OK(device->overlay_config(58, mine, 2));
    OK(device->wait(patience_ms));
    CHECK(device->get_counters()->requests_sent == sent); /* it is nobody's but ours */
    std::array<std::uint8_t, 3> bytes{};
    const auto again = device->read_config(57, bytes.data(), bytes.size());
    OK(again);
    CHECK(*again != generation);
    CHECK(bytes[1] == 1);
    CHECK(bytes[2] == 2);
    CHECK(device->read_config(config_size, bytes.data(), 1).code() == -EINVAL);
    /* The write cache, of which the back-end takes a write. */
    OK(device->write_config(32, "\1", 1));
    CHECK(device->write_config(config_size, "\1", 1).code() == -EINVAL);
    OK(device->wait(patience_ms));
    CHECK(device->get_counters()->requests_sent > sent);
}

TEST_CASE("the size of the configuration space is chosen later, and its data is current")
{
    const fd_guard guard;
    const program back_end = program::disk();
    auto options = quick_options();
    options.config_size = VUF_CONFIG_SIZE_LATER;
    auto device = vuf::device::open(back_end.path(), options);
    OK(device);
    std::uint8_t byte = 0;
    CHECK(device->assume_config(0, &byte, 1).error() == vuf::errc::state);
    OK(device->wait(patience_ms));
    OK(device->set_config_size(config_size));
    CHECK(device->assume_config(config_size, &byte, 1).code() == -EINVAL);
    OK(device->assume_config(0, &byte, 1));
    OK(device->wait_config(patience_ms));
    const auto sectors = device->read_config<std::uint64_t>();
    OK(sectors);
    CHECK(*sectors == DISK_SIZE / 512);
    CHECK(device->set_config_size(36).error() == vuf::errc::state);
    OK(device->write_config(32, "\1", 1));
    CHECK(device->read_current_config(32, &byte, 1).code() == -EAGAIN);
    OK(device->wait_config());
    OK(device->read_current_config(32, &byte, 1));
    CHECK(byte == 1);
}

TEST_CASE("a preset has what a type of device needs")
{
    const auto options = vuf::device::options_for(2);
    OK(options);
    CHECK(options->config_size == VUF_CONFIG_SIZE_LATER);
    CHECK(*vuf::device::config_size_for(2, 0) == 36);
    CHECK(*vuf::device::hidden_features_for(2) == VUF_TRANSPORT_FEATURES);
    CHECK(vuf::device::options_for(0).code() == -EINVAL);
    CHECK(std::string(vuf_device_ring_name(2, 0, 1)) == "requestq");
}

TEST_CASE("settings need their protocol features")
{
    const fd_guard guard;
    const program back_end = program::disk();
    auto options = quick_options();
    auto device = vuf::device::open(back_end.path(), options);
    OK(device);
    CHECK(device->set_mtu(1500).error() == vuf::errc::not_negotiated);
    CHECK(device->send_rarp(1).error() == vuf::errc::not_negotiated);
    const std::uint8_t uuid[16] = {1};
    CHECK(device->get_backend_status(1).error() == vuf::errc::disconnected);
    CHECK(device->get_shared_object(uuid, 1).error() == vuf::errc::disconnected);
    CHECK(device->set_gpu_socket(vuf::unique_fd()).code() == -EBADF);
    options.protocol_features = VUF_DEVICE_DEFAULT_PROTOCOL_FEATURES |
                                vuf::bit(VUF_PROTOCOL_F_MTU);
    auto other = vuf::device::open(back_end.path(), options);
    OK(other);
    OK(other->set_mtu(1500));
    CHECK(other->set_mtu(67).code() == -EINVAL);
    OK(other->set_vring_endian(VUF_VRING_BIG_ENDIAN));
    CHECK(other->set_vring_endian(2).code() == -EINVAL);
}

TEST_CASE("memory comes and goes")
{
    const fd_guard guard;
    const program back_end = program::disk();
    guest driver;
    const guest more(more_addr);
    auto device = vuf::device::open(back_end.path(), quick_options());
    OK(device);
    start(*device, driver);
    const int before = guard.more();
    OK(device->memory_fits(std::array{driver.region(), more.region()}));
    CHECK(device->memory_fits(std::array{driver.region(), driver.region()}).code() == -EINVAL);
    OK(device->add_memory(more.region()));
    CHECK(guard.more() == before + 1); /* kept, until it has gone */
    OK(device->wait(patience_ms));
    CHECK(device->remove_memory(guest_addr, guest_size).error() ==
          std::errc::device_or_resource_busy);
    const auto quiet = device->remove_memory(more_addr, guest_size);
    OK(quiet);
    OK(device->wait(patience_ms));
    CHECK(device->get_quiet()->quiesced == 1);
    CHECK(guard.more() == before);
    driver.write_and_read(0x66);
    CHECK(device->stop_all(VUF_STOP_DRAIN, patience_ms)->quiesced == 1);
    OK(device->set_memory({}));
    OK(device->wait(patience_ms));
    auto translation = vuf::make<vuf_iotlb>();
    translation.size = 1;
    translation.type = VUF_IOTLB_INVALIDATE;
    CHECK(device->post_iotlb(translation).error() == vuf::errc::not_negotiated);
}

TEST_CASE("a back-end that dies is followed by another, from the index that a function tells")
{
    const fd_guard guard;
    program back_end = program::disk();
    guest driver;
    std::atomic<unsigned> asked{0};
    auto index_of = [&](std::uint32_t ring,
                        std::uint32_t which) -> std::optional<std::uint16_t> {
        asked++;
        if (ring != 0 || which != VUF_RING_INDEX_USED) {
            return std::nullopt;
        }
        return driver.ring.last_used;
    };
    auto options = quick_options();
    options.out_of_order = VUF_OUT_OF_ORDER_REPLAY_FROM_USED;
    options.first_delay_ms = options.max_delay_ms = 10 * patience_ms; /* but see reconnect() */
    auto device = vuf::device::open(back_end.path(), options);
    OK(device);
    OK(device->set_memory(driver.region()));
    OK(device->wait(patience_ms));
    OK(device->set_features(vuf::bit(VIRTIO_F_VERSION_1)));
    auto ring = driver.description();
    ring.used_index = ring.avail_index = nullptr;
    vuf::set_index(ring, index_of);
    OK(device->start(ring));
    OK(device->wait(patience_ms));
    driver.write_and_read(0x11);
    asked = 0;
    back_end.kill();
    const auto lost = until(*device, VUF_DEVICE_EVENT_LOST);
    CHECK(std::error_code(lost.code, vuf::category()) == vuf::error_class::transport);
    CHECK(lost.recovery == VUF_RECOVERY_REPLAY_FROM_USED);
    CHECK(!device->get_info()->connected);
    back_end.again();
    OK(device->reconnect());
    until(*device, VUF_DEVICE_EVENT_RECOVERED);
    CHECK(asked > 0);
    driver.write_and_read(0x22);
    OK(device->stop_all(VUF_STOP_DRAIN, patience_ms));
}

TEST_CASE("an index that is not known asks for a reset")
{
    const fd_guard guard;
    program back_end = program::disk();
    guest driver;
    const auto unknown = [](std::uint32_t, std::uint32_t) { return std::optional<std::uint16_t>(); };
    auto options = quick_options();
    options.out_of_order = VUF_OUT_OF_ORDER_REPLAY_FROM_USED;
    auto device = vuf::device::open(back_end.path(), options);
    OK(device);
    OK(device->set_memory(driver.region()));
    OK(device->wait(patience_ms));
    OK(device->set_features(vuf::bit(VIRTIO_F_VERSION_1)));
    auto ring = driver.description();
    ring.used_index = ring.avail_index = nullptr;
    vuf::set_index(ring, unknown);
    OK(device->start(ring));
    OK(device->wait(patience_ms));
    back_end.kill();
    until(*device, VUF_DEVICE_EVENT_NEEDS_RESET);
    CHECK(device->wait(1).error() == vuf::errc::state);
    OK(device->reset(0));
}

TEST_CASE("sockets are taken on success only")
{
    const fd_guard guard;
    const program back_end = program::disk();
    auto device = vuf::device::open_fd(vuf::unique_fd(), quick_options());
    OK(device);
    until(*device, VUF_DEVICE_EVENT_NEEDS_FD);
    vuf::unique_fd file(open("/dev/null", O_RDONLY | O_CLOEXEC));
    CHECK(device->set_fd(std::move(file)).error() == std::errc::not_a_socket);
    CHECK(file);
    vuf::unique_fd good = connection(back_end.path());
    OK(device->set_fd(std::move(good)));
    CHECK(!good);
    until(*device, VUF_DEVICE_EVENT_CONNECTED);

    /* And at once. */
    device->free();
    CHECK(!*device);
    good = connection(back_end.path());
    auto other = vuf::device::open_fd(std::move(good), quick_options());
    OK(other);
    CHECK(!good);
    until(*other, VUF_DEVICE_EVENT_CONNECTED);
    vuf::device third(std::move(*other));
    vuf::device fourth(third.release());
    CHECK(!third);
    OK(fourth.wait(patience_ms));
}

TEST_CASE("a device listens, and its trace tells")
{
    const fd_guard guard;
    const program back_end = program::mock({});
    const std::string path = back_end.path() + ".listen";
    tracer trace;
    auto device = vuf::device::listen(path, 0600, quick_options());
    OK(device);
    struct stat about {};
    REQUIRE(stat(path.c_str(), &about) == 0);
    CHECK((about.st_mode & 0777) == 0600);
    CHECK(vuf::device::listen(path, 0600).error() == std::errc::address_in_use);
    OK(device->set_trace(trace));
    {
        const vuf::unique_fd peer = connection(path);
        while (trace.lines.empty()) {
            pollfd item{device->get_fd(), POLLIN, 0};
            REQUIRE(poll(&item, 1, patience_ms) == 1);
            OK(device->process());
        }
        CHECK(trace.first() == "> GET_FEATURES");
    }
    OK(device->set_trace(nullptr));
    const std::size_t lines = trace.lines.size();
    const vuf::unique_fd peer = connection(path);
    pollfd asked{peer.get(), POLLIN, 0};
    while (poll(&asked, 1, 0) == 0) {
        pollfd item{device->get_fd(), POLLIN, 0};
        REQUIRE(poll(&item, 1, patience_ms) == 1);
        OK(device->process());
    }
    CHECK(trace.lines.size() == lines);
}

namespace {

/* What a device may serve. */
struct finder {
    std::string seen;
    int shared_object_lookup(const vuf::uuid &object, vuf::unique_fd &fd)
    {
        auto made = vuf::memfd_create("object", 4096);
        fd = *std::move(made);
        seen += std::to_string(object[15]);
        return 0;
    }
    int shmem_map(const vuf_shmem_area &, vuf::unique_fd) { return 0; }
    int shmem_unmap(const vuf_shmem_area &) { return 0; }
};

} // namespace

TEST_CASE("a device serves what its back-end asks")
{
    const fd_guard guard;
    const program back_end = program::mock(
        {"device config-size 60", "on GET_CONFIG nth=1: send SHARED_OBJECT_LOOKUP "
                                  "uuid=00112233-4455-6677-8899-aabbccddeeff answer=0"});
    finder served;
    auto options = quick_options();
    vuf::serve(options, served);
    CHECK(options.user == &served);
    auto device = vuf::device::open(back_end.path(), options);
    OK(device);
    OK(device->wait(patience_ms));
    CHECK(served.seen == "255");
    const auto info = device->get_info();
    CHECK((info->protocol_features & vuf::bit(VUF_PROTOCOL_F_SHARED_OBJECT)) != 0);
    CHECK(device->get_counters()->backend_requests_served == 1);
}

TEST_CASE("a group has one memory for all")
{
    const fd_guard guard;
    const program one = program::disk(), other = program::disk();
    guest driver;
    const guest more(more_addr);
    auto made = vuf::memory_group::create();
    OK(made);
    vuf::memory_group group = *std::move(made);
    CHECK(group);
    std::vector<vuf::device> devices;
    for (const program *back_end : {&one, &other}) {
        auto device = vuf::device::open(back_end->path(), quick_options());
        OK(device);
        devices.push_back(*std::move(device));
        OK(group.join(devices.back()));
        CHECK(group.join(devices.back()).error() == vuf::errc::state);
    }
    OK(group.set_memory(driver.region()));
    for (auto &device : devices) {
        OK(device.wait(patience_ms));
        OK(device.set_features(vuf::bit(VIRTIO_F_VERSION_1)));
    }
    OK(group.wait(patience_ms));
    OK(devices[0].start(driver.description()));
    OK(devices[0].wait(patience_ms));
    driver.write_and_read(0x77);
    CHECK(byte_of_disk(one, 8 * 512) == 0x77);
    CHECK(byte_of_disk(other, 8 * 512) == 0);

    OK(group.memory_fits(std::vector<vuf_mem_region>{driver.region(), more.region()}));
    const vuf_mem_region twice[] = {more.region(), more.region()};
    CHECK(group.memory_fits(twice).code() == -EINVAL);
    OK(group.add_memory(more.region()));
    OK(group.wait(patience_ms));
    for (const auto &device : devices) {
        CHECK(*device.get_memory_state() == VUF_MEMORY_APPLIED);
    }
    CHECK(group.remove_memory(guest_addr, guest_size).error() ==
          std::errc::device_or_resource_busy);
    /* Who leaves keeps what it has. */
    OK(group.leave(devices[1]));
    OK(group.remove_memory(more_addr, guest_size));
    OK(devices[1].remove_memory(more_addr, guest_size));
    CHECK(devices[0].remove_memory(more_addr, guest_size).code() == VUF_E_STATE);
    /* Devices and group may be moved, and go in any order. */
    vuf::memory_group same(std::move(group));
    CHECK(!group);
    CHECK(group.wait(1).code() == -EINVAL);
    vuf::memory_group again(same.release());
    CHECK(!same);
    CHECK(devices[0].stop_all(VUF_STOP_DRAIN, patience_ms)->quiesced == 1);
    devices.pop_back();
    again.free();
    CHECK(!again);
    OK(devices[0].wait(patience_ms));
}

/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Uses what is a template of the header, so that all of it is compiled, and is linked
   with another translation unit that has the same. */
#include "two.hpp"

#include <cstdio>

namespace {

struct handler {
    int iotlb_miss(std::uint64_t, std::uint32_t) { return 0; }
    int iotlb_access_fail(std::uint64_t, std::uint64_t, std::uint32_t) { return 0; }
    int host_notifier(std::uint32_t, vuf::unique_fd, std::uint64_t, std::uint64_t) { return 0; }
    int shared_object_lookup(const vuf::uuid &, vuf::unique_fd &) { return -1; }
    int shmem_map(const vuf_shmem_area &, vuf::unique_fd) { return 0; }
    int shmem_unmap(const vuf_shmem_area &) { return 0; }
    void config_changed() {}
    void vring_call(std::uint32_t) {}
    void vring_err(std::uint32_t) {}
    void shared_object_added(const vuf::uuid &) {}
    void shared_object_removed(const vuf::uuid &) {}
};

} // namespace

int main()
{
    handler served;
    vuf::client client;
    vuf::device device;
    auto options = vuf::make<vuf_device_options>();
    auto ring = vuf::make<vuf_ring>();
    const auto trace = [](const vuf_trace_record &) {};
    const auto index = [](std::uint32_t, std::uint32_t) { return std::optional<std::uint16_t>(1); };
    std::uint16_t told = 0;
    vuf::serve(options, served);
    vuf::set_index(ring, index);
    const bool good = two_agrees(client.set_owner().error()) &&
                      !client.open_backend_channel(served) && !client.set_trace(trace) &&
                      !device.set_trace(trace) && !client.get_config<int>() &&
                      !device.read_config<int>() && !device.start(ring) &&
                      options.user == &served &&
                      ring.get_index(ring.user, 0, VUF_RING_INDEX_USED, &told) == 0 && told == 1;
#ifdef __cpp_exceptions
    try {
        client.set_owner().value();
        return 1;
    } catch (const vuf::error &caught) {
        std::puts(caught.what());
    }
#endif
    return good ? 0 : 1;
}

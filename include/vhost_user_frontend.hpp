/*
 * libvhost_user_frontend for C++17 and later: owners for the handles and
 * descriptors of vhost_user_frontend.h, and its codes as std::error_code.
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 *
 * Each member function is the C function of the same name, as client::set_owner() is
 * vuf_client_set_owner(), and what that does, needs and returns is described there.
 * Here is what differs:
 *
 * Results. A function that can fail returns a result: true in a condition if it
 * succeeded, with the value behind * and ->, the code in error(), and the words and
 * fields of this very failure in message() and info(). value() throws vuf::error
 * instead, where the program is compiled with exceptions. Nothing else throws.
 *
 *   auto client = vuf::client::connect(path).value();        // with exceptions
 *
 *   auto client = vuf::client::connect(path);                // without
 *   if (!client) {
 *       std::fprintf(stderr, "%s\n", client.message());
 *   }
 *   auto features = client->get_features();
 *
 * Codes. error() has the C code as its value: compare it with std::errc where that is
 * an errno, with vuf::errc, or with a vuf::error_class to know what to do about it.
 *
 * Ownership. What a C function gives is a unique_fd. What it takes is a unique_fd&&,
 * which is emptied on success only. What it borrows or keeps is an int, as in C.
 *
 * Structs are those of C: make<vuf_device_options>() sets size, and the descriptors
 * that there are not to -1.
 *
 * Callbacks are objects of yours, borrowed until the client or device is freed, or
 * the trace is replaced. An exception that one of them lets out ends the program
 * (std::terminate): it has no way through the library.
 *
 * Threads. As in C: any thread may call any member function of a handle, several at
 * once; but not while another frees or releases it, moves from it, assigns to it or
 * destroys it.
 *
 * Translation units with and without exceptions or RTTI may be linked together. The
 * types have no ABI beyond one release: between libraries that are compiled apart,
 * pass native_handle() and plain codes.
 */

#ifndef VHOST_USER_FRONTEND_HPP
#define VHOST_USER_FRONTEND_HPP

#include "vhost_user_frontend.h"

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <system_error>
#include <type_traits>
#include <unistd.h>
#include <utility>

/* The C structs may grow with each release, and with them what holds them: so each
   release has names of its own, and two in one process do not mix. */
#define VUF_DETAIL_JOIN(major, minor, patch) v##major##_##minor##_##patch
#define VUF_DETAIL_VERSION(major, minor, patch) VUF_DETAIL_JOIN(major, minor, patch)

namespace vuf {
inline namespace VUF_DETAIL_VERSION(VUF_VERSION_MAJOR, VUF_VERSION_MINOR, VUF_VERSION_PATCH) {

/* ---- codes ---- */

/* The codes that are no errno. Of an errno, std::errc is what to compare with. */
enum class errc : int {
    disconnected = VUF_E_DISCONNECTED,
    protocol = VUF_E_PROTOCOL,
    nack = VUF_E_NACK,
    not_negotiated = VUF_E_NOT_NEGOTIATED,
    poisoned = VUF_E_POISONED,
    state = VUF_E_STATE,
    panic = VUF_E_PANIC,
};

/* What to do about a code, as vuf_error_class() tells: a condition, so that
   `result.error() == vuf::error_class::transport` holds for all codes of that class. */
enum class error_class : int {
    transport = VUF_CLASS_TRANSPORT,
    refused = VUF_CLASS_REFUSED,
    protocol = VUF_CLASS_PROTOCOL,
    local = VUF_CLASS_LOCAL,
};

namespace detail {

/* The one T, which is never destroyed: threads and other destructors may still want it
   while the program ends. */
template <class T> const T &immortal() noexcept
{
    alignas(T) static std::byte place[sizeof(T)];
    static const T *const made = ::new (static_cast<void *>(place)) T();
    return *made;
}

class code_category final : public std::error_category {
  public:
    const char *name() const noexcept override { return "vhost_user_frontend"; }
    std::string message(int code) const override { return vuf_strerror(code); }
    std::error_condition default_error_condition(int code) const noexcept override
    {
        if (code < 0 && code >= -4095) {
            return {-code, std::generic_category()};
        }
        return {code, *this};
    }
};

} // namespace detail

/* The category of the C functions' codes. */
inline const std::error_category &category() noexcept
{
    return detail::immortal<detail::code_category>();
}

namespace detail {

class class_category final : public std::error_category {
  public:
    const char *name() const noexcept override { return "vhost_user_frontend class"; }
    std::string message(int number) const override
    {
        switch (static_cast<error_class>(number)) {
        case error_class::transport:
            return "the connection or the back-end's process";
        case error_class::refused:
            return "the back-end refused";
        case error_class::protocol:
            return "the back-end broke the protocol";
        case error_class::local:
            return "the caller or this machine";
        }
        return "no failure";
    }
    using std::error_category::equivalent;
    bool equivalent(const std::error_code &code, int condition) const noexcept override
    {
        return code.category() == category() && condition != VUF_CLASS_NONE &&
               vuf_error_class(code.value()) == static_cast<std::uint32_t>(condition);
    }
};

} // namespace detail

inline const std::error_category &class_category() noexcept
{
    return detail::immortal<detail::class_category>();
}

inline std::error_code make_error_code(errc code) noexcept
{
    return {static_cast<int>(code), category()};
}

inline std::error_condition make_error_condition(error_class number) noexcept
{
    return {static_cast<int>(number), class_category()};
}

} // namespace VUF_DETAIL_VERSION
} // namespace vuf

template <> struct std::is_error_code_enum<vuf::errc> : std::true_type {};
template <> struct std::is_error_condition_enum<vuf::error_class> : std::true_type {};

namespace vuf {
inline namespace VUF_DETAIL_VERSION(VUF_VERSION_MAJOR, VUF_VERSION_MINOR, VUF_VERSION_PATCH) {

/* ---- results ---- */

namespace detail {

/* This thread's last failure, copied: the next one takes its place. */
struct failure {
    vuf_error_info info;
    char text[512];
};

inline vuf_error_info info_of(int code) noexcept
{
    vuf_error_info info{};
    info.size = sizeof info;
    info.code = code;
    info.error_class = vuf_error_class(code);
    info.errno_value = code < 0 && code >= -4095 ? -code : 0;
    info.ring = -1;
    info.region = -1;
    return info;
}

inline std::unique_ptr<failure> capture(int code) noexcept
{
    std::unique_ptr<failure> copy(new (std::nothrow) failure());
    if (copy != nullptr) {
        copy->info.size = sizeof copy->info;
        const bool same = vuf_last_error_info(&copy->info) == 0 && copy->info.code == code;
        if (!same) {
            copy->info = info_of(code);
        }
        std::strncpy(copy->text, same ? vuf_last_error() : vuf_strerror(code),
                     sizeof copy->text - 1);
    }
    return copy;
}

} // namespace detail

/* Success or failure: what all results have. */
class [[nodiscard]] outcome {
  public:
    explicit operator bool() const noexcept { return code_ == 0; }
    bool has_value() const noexcept { return code_ == 0; }

    /* What the C function returned. */
    int code() const noexcept { return code_; }
    std::error_code error() const noexcept { return {code_, category()}; }

    /* The failure in words (empty for success), and in fields. */
    const char *message() const noexcept
    {
        return code_ == 0 ? "" : failure_ != nullptr ? failure_->text : vuf_strerror(code_);
    }
    vuf_error_info info() const noexcept
    {
        return failure_ != nullptr ? failure_->info : detail::info_of(code_);
    }

  protected:
    explicit outcome(int code) noexcept
        : code_(code), failure_(code == 0 ? nullptr : detail::capture(code))
    {
    }
#ifdef __cpp_exceptions
    void check() const;
#endif

  private:
    int code_;
    std::unique_ptr<detail::failure> failure_; /* nullptr also if memory was short */
};

#ifdef __cpp_exceptions
/* What value() throws. what() has the words of vuf_last_error(). */
class error : public std::system_error {
  public:
    explicit error(const outcome &failed)
        : std::system_error(failed.error(), failed.message()), info_(failed.info())
    {
    }
    const vuf_error_info &info() const noexcept { return info_; }

  private:
    vuf_error_info info_;
};

inline void outcome::check() const
{
    if (!has_value()) {
        throw vuf::error(*this);
    }
}
#endif

/* A T, or a failure. After a failure * gives a T that is empty (a handle without a
   device, a descriptor that is none, zeros), unless its function says otherwise. */
template <class T> class [[nodiscard]] result : public outcome {
  public:
    /* From what a C function has returned and written, right after the call: for your
       own calls with native_handle(), too. */
    result(int code, T value) noexcept : outcome(code), value_(std::move(value)) {}

    T &operator*() &noexcept { return value_; }
    const T &operator*() const &noexcept { return value_; }
    T &&operator*() &&noexcept { return std::move(value_); }
    T *operator->() noexcept { return &value_; }
    const T *operator->() const noexcept { return &value_; }
#ifdef __cpp_exceptions
    T &value() &
    {
        check();
        return value_;
    }
    const T &value() const &
    {
        check();
        return value_;
    }
    T value() &&
    {
        check();
        return std::move(value_);
    }
#endif

  private:
    T value_;
};

template <> class [[nodiscard]] result<void> : public outcome {
  public:
    explicit result(int code) noexcept : outcome(code) {}
#ifdef __cpp_exceptions
    void value() const { check(); }
#endif
};

/* ---- descriptors, structs, arguments ---- */

/* Owns a file descriptor, or none (-1). */
class unique_fd {
  public:
    unique_fd() noexcept = default;
    explicit unique_fd(int fd) noexcept : fd_(fd) {}
    unique_fd(unique_fd &&other) noexcept : fd_(other.release()) {}
    unique_fd &operator=(unique_fd &&other) noexcept
    {
        reset(other.release());
        return *this;
    }
    unique_fd(const unique_fd &) = delete;
    unique_fd &operator=(const unique_fd &) = delete;
    ~unique_fd() { reset(); }

    int get() const noexcept { return fd_; }
    explicit operator bool() const noexcept { return fd_ >= 0; }
    [[nodiscard]] int release() noexcept { return std::exchange(fd_, -1); }

    /* Closes what it has. Leaves errno alone. */
    void reset(int fd = -1) noexcept
    {
        const int old = std::exchange(fd_, fd);
        if (old >= 0) {
            const int before = errno;
            ::close(old);
            errno = before;
        }
    }

  private:
    int fd_ = -1;
};

namespace detail {

/* Whether a struct begins with its size. (Regions and rings have a size of another
   kind, which comes later.) */
template <class T, class = void> struct is_sized : std::false_type {};
template <class T>
struct is_sized<T, std::enable_if_t<std::is_same_v<decltype(T::size), std::size_t>>>
    : std::bool_constant<offsetof(T, size) == 0> {};

} // namespace detail

/* A C struct as its documentation wants it before the fields are set: zero, with size
   where it has one, and with -1 for descriptors: but for the outputs of
   vuf_backend_process_options, of which 0 is this process's own and -1 is none. */
template <class T> constexpr T make() noexcept
{
    static_assert(std::is_standard_layout_v<T> && std::is_trivially_copyable_v<T>,
                  "a struct of C");
    T made{};
    if constexpr (detail::is_sized<T>::value) {
        made.size = sizeof(T);
    }
    if constexpr (std::is_same_v<T, vuf_ring>) {
        made.kick_fd = made.call_fd = made.err_fd = -1;
    } else if constexpr (std::is_same_v<T, vuf_mem_region> || std::is_same_v<T, vuf_op>) {
        made.fd = -1;
    }
    return made;
}

/* The mask of a feature: bit(VUF_PROTOCOL_F_MQ). */
constexpr std::uint64_t bit(unsigned number) noexcept { return std::uint64_t{1} << number; }

/* The identity of a shared object. */
using uuid = std::array<std::uint8_t, 16>;

/* An array of somebody else's: from one T, from an array, from what has data() and
   size() (std::vector, std::span), or from a pointer and a number. */
template <class T> class view {
  public:
    constexpr view() noexcept = default;
    /* Not from a literal 0, which would be a null pointer: {0, 1} is no list. */
    template <class P, class = std::enable_if_t<std::is_convertible_v<P *, T *>>>
    constexpr view(P *data, std::size_t size) noexcept : data_(data), size_(size)
    {
    }
    constexpr view(T &one) noexcept : data_(&one), size_(1) {}
    template <class C, class Data = decltype(std::data(std::declval<C &>())),
              class = std::enable_if_t<std::is_convertible_v<
                  std::remove_pointer_t<Data> (*)[], T (*)[]>>>
    constexpr view(C &&many) noexcept : data_(std::data(many)), size_(std::size(many))
    {
    }
    constexpr T *data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }

  private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};

/* A text of somebody else's: a const char *, or what has c_str() (std::string,
   std::filesystem::path). One with a NUL inside would be cut off there: it counts as
   NULL, which is refused. */
class c_text {
  public:
    constexpr c_text(const char *text) noexcept : text_(text) {}
    template <class S, class = decltype(std::declval<const S &>().c_str())>
    c_text(const S &text) noexcept : text_(text.c_str())
    {
        const auto &all = text_of(text, 0);
        if (std::strlen(text_) != all.size()) {
            text_ = nullptr;
        }
    }
    constexpr const char *get() const noexcept { return text_; }

  private:
    /* A path has its size in its string. */
    template <class S> static auto text_of(const S &text, int) noexcept -> decltype(text.native())
    {
        return text.native();
    }
    template <class S> static const S &text_of(const S &text, long) noexcept { return text; }

    const char *text_;
};

/* ---- callbacks ---- */

namespace detail {

template <class F> void *user_of(F &callback) noexcept
{
    static_assert(std::is_object_v<F>, "an object, as a lambda; not a function");
    return const_cast<void *>(static_cast<const volatile void *>(std::addressof(callback)));
}

template <class F> F &callback_of(void *user) noexcept { return *static_cast<F *>(user); }

inline uuid uuid_at(const std::uint8_t *bytes) noexcept
{
    uuid copy{};
    std::memcpy(copy.data(), bytes, copy.size());
    return copy;
}

/* Whether a handler has a public member of that name. */
#define VUF_DETAIL_SERVES(name)                                                                    \
    template <class H, class = void> struct serves_##name : std::false_type {};                    \
    template <class H> struct serves_##name<H, std::void_t<decltype(&H::name)>> : std::true_type {}
VUF_DETAIL_SERVES(iotlb_miss);
VUF_DETAIL_SERVES(iotlb_access_fail);
VUF_DETAIL_SERVES(host_notifier);
VUF_DETAIL_SERVES(shared_object_lookup);
VUF_DETAIL_SERVES(shmem_map);
VUF_DETAIL_SERVES(shmem_unmap);
VUF_DETAIL_SERVES(config_changed);
VUF_DETAIL_SERVES(vring_call);
VUF_DETAIL_SERVES(vring_err);
VUF_DETAIL_SERVES(shared_object_added);
VUF_DETAIL_SERVES(shared_object_removed);
#undef VUF_DETAIL_SERVES

/* noexcept is what ends the program where a callback throws. */
template <class H> constexpr vuf_backend_ops make_backend_ops() noexcept
{
    static_assert(serves_iotlb_miss<H>::value || serves_iotlb_access_fail<H>::value ||
                      serves_host_notifier<H>::value || serves_shared_object_lookup<H>::value ||
                      serves_shmem_map<H>::value || serves_config_changed<H>::value ||
                      serves_vring_call<H>::value || serves_vring_err<H>::value ||
                      serves_shared_object_added<H>::value ||
                      serves_shared_object_removed<H>::value,
                  "a handler that serves nothing: is it a pointer, or are its members not "
                  "public, or overloaded?");
    static_assert(serves_shmem_map<H>::value == serves_shmem_unmap<H>::value,
                  "what is mapped has to be unmapped: shmem_map and shmem_unmap, or neither");
    auto ops = make<vuf_backend_ops>();
    if constexpr (serves_iotlb_miss<H>::value) {
        ops.iotlb_miss = [](void *user, std::uint64_t iova, std::uint32_t perm) noexcept -> int {
            return callback_of<H>(user).iotlb_miss(iova, perm);
        };
    }
    if constexpr (serves_iotlb_access_fail<H>::value) {
        ops.iotlb_access_fail = [](void *user, std::uint64_t iova, std::uint64_t size,
                                   std::uint32_t perm) noexcept -> int {
            return callback_of<H>(user).iotlb_access_fail(iova, size, perm);
        };
    }
    if constexpr (serves_host_notifier<H>::value) {
        ops.host_notifier = [](void *user, std::uint32_t ring, int fd, std::uint64_t offset,
                               std::uint64_t size) noexcept -> int {
            return callback_of<H>(user).host_notifier(ring, unique_fd(fd), offset, size);
        };
    }
    if constexpr (serves_shared_object_lookup<H>::value) {
        ops.shared_object_lookup = [](void *user, const std::uint8_t *bytes,
                                      int *fd) noexcept -> int {
            unique_fd found;
            const int rc =
                callback_of<H>(user).shared_object_lookup(uuid_at(bytes), found);
            if (rc == 0) {
                *fd = found.release();
            }
            return rc;
        };
    }
    if constexpr (serves_shmem_map<H>::value) {
        ops.shmem_map = [](void *user, const vuf_shmem_area *area, int fd) noexcept -> int {
            return callback_of<H>(user).shmem_map(*area, unique_fd(fd));
        };
    }
    if constexpr (serves_shmem_unmap<H>::value) {
        ops.shmem_unmap = [](void *user, const vuf_shmem_area *area) noexcept -> int {
            return callback_of<H>(user).shmem_unmap(*area);
        };
    }
    if constexpr (serves_config_changed<H>::value) {
        ops.config_changed = [](void *user) noexcept { callback_of<H>(user).config_changed(); };
    }
    if constexpr (serves_vring_call<H>::value) {
        ops.vring_call = [](void *user, std::uint32_t ring) noexcept {
            callback_of<H>(user).vring_call(ring);
        };
    }
    if constexpr (serves_vring_err<H>::value) {
        ops.vring_err = [](void *user, std::uint32_t ring) noexcept {
            callback_of<H>(user).vring_err(ring);
        };
    }
    if constexpr (serves_shared_object_added<H>::value) {
        ops.shared_object_added = [](void *user, const std::uint8_t *bytes) noexcept {
            callback_of<H>(user).shared_object_added(uuid_at(bytes));
        };
    }
    if constexpr (serves_shared_object_removed<H>::value) {
        ops.shared_object_removed = [](void *user, const std::uint8_t *bytes) noexcept {
            callback_of<H>(user).shared_object_removed(uuid_at(bytes));
        };
    }
    return ops;
}

template <class F> void trace(void *user, const vuf_trace_record *record) noexcept
{
    callback_of<F>(user)(*record);
}

struct free_client {
    void operator()(vuf_client *client) const noexcept { vuf_client_free(client); }
};
struct free_device {
    void operator()(vuf_device *device) const noexcept { vuf_device_free(device); }
};
struct free_backend_programs {
    void operator()(vuf_backend_programs *programs) const noexcept
    {
        vuf_backend_programs_free(programs);
    }
};
struct free_backend_process {
    void operator()(vuf_backend_process *process) const noexcept
    {
        vuf_backend_process_free(process);
    }
};
struct free_memory_group {
    void operator()(vuf_memory_group *group) const noexcept { vuf_memory_group_free(group); }
};

} // namespace detail

/*
 * struct vuf_backend_ops for an object of type H: it serves what H has a public member
 * function for, with the name that it has in the struct. Those that answer return int.
 *
 *   int iotlb_miss(std::uint64_t iova, std::uint32_t perm)
 *   int iotlb_access_fail(std::uint64_t iova, std::uint64_t size, std::uint32_t perm)
 *   int host_notifier(std::uint32_t ring, vuf::unique_fd fd, std::uint64_t offset,
 *                     std::uint64_t size)                   without fd: goes away
 *   int shared_object_lookup(const vuf::uuid &, vuf::unique_fd &fd)   set fd, return 0
 *   int shmem_map(const vuf_shmem_area &, vuf::unique_fd fd)
 *   int shmem_unmap(const vuf_shmem_area &)
 *   void config_changed()
 *   void vring_call(std::uint32_t ring)
 *   void vring_err(std::uint32_t ring)
 *   void shared_object_added(const vuf::uuid &)
 *   void shared_object_removed(const vuf::uuid &)
 *
 * They are neither overloaded nor templates.
 */
template <class H> inline constexpr vuf_backend_ops backend_ops = detail::make_backend_ops<H>();

/* Sets the two fields of the options from which a device knows handler, which is
   borrowed until the device is freed. */
template <class H> void serve(vuf_device_options &options, H &handler) noexcept
{
    options.backend_ops = &backend_ops<H>;
    options.user = detail::user_of(handler);
}

/* Sets get_index of a ring: callback(ring, which) gives the index as
   std::optional<std::uint16_t>. Borrowed as used_index is. */
template <class F> void set_index(vuf_ring &ring, F &callback) noexcept
{
    ring.get_index = [](void *user, std::uint32_t number, std::uint32_t which,
                        std::uint16_t *index) noexcept -> int {
        const std::optional<std::uint16_t> known = detail::callback_of<F>(user)(number, which);
        if (known) {
            *index = *known;
        }
        return known ? 0 : -1;
    };
    ring.user = detail::user_of(callback);
}

/* ---- without a handle ---- */

/* name is a c_text: see there. */
inline result<unique_fd> memfd_create(c_text name, std::uint64_t size,
                                      std::uint64_t huge_page_size = 0,
                                      std::uint32_t flags = 0) noexcept
{
    int fd = -1;
    const int rc = vuf_memfd_create(name.get(), size, huge_page_size, flags, &fd);
    return {rc, unique_fd(fd)};
}

/* How many bits of the bitmap are new. */
inline result<std::uint64_t> dirty_log_sync(void *log, std::size_t log_size,
                                            std::uint64_t first_page, std::uint64_t pages,
                                            void *bitmap) noexcept
{
    std::uint64_t new_pages = 0;
    const int rc = vuf_dirty_log_sync(log, log_size, first_page, pages, bitmap, &new_pages);
    return {rc, new_pages};
}

/* ---- the client ---- */

/* The buffer of requests in flight. fd is none where the back-end wants no buffer. */
struct inflight_buffer {
    vuf_inflight description{};
    unique_fd fd;
};

/* Owns a struct vuf_client, or none: calls then fail with -EINVAL. */
class client {
  public:
    client() noexcept = default;
    explicit client(vuf_client *owned) noexcept : handle_(owned) {}

    static result<client>
    connect(c_text path, const vuf_client_options &options = make<vuf_client_options>()) noexcept
    {
        vuf_client *out = nullptr;
        const int rc = vuf_client_connect(path.get(), &options, &out);
        return {rc, client(out)};
    }
    static result<client>
    accept(int listen_fd,
           const vuf_client_options &options = make<vuf_client_options>()) noexcept
    {
        vuf_client *out = nullptr;
        const int rc = vuf_client_accept(listen_fd, &options, &out);
        return {rc, client(out)};
    }
    static result<client>
    from_fd(unique_fd &&fd,
            const vuf_client_options &options = make<vuf_client_options>()) noexcept
    {
        vuf_client *out = nullptr;
        const int rc = vuf_client_from_fd(fd.get(), &options, &out);
        if (rc == 0) {
            static_cast<void>(fd.release());
        }
        return {rc, client(out)};
    }

    explicit operator bool() const noexcept { return handle_ != nullptr; }
    /* For the C functions. It stays the client's. */
    vuf_client *native_handle() const noexcept { return handle_.get(); }
    /* Yours from here on. */
    [[nodiscard]] vuf_client *release() noexcept { return handle_.release(); }
    /* Frees it; there is none then. */
    void free() noexcept { handle_.reset(); }

    result<void> abort() noexcept { return result<void>(vuf_client_abort(get())); }
    /* Borrowed, or a negative code. */
    int get_fd() const noexcept { return vuf_client_get_fd(get()); }

    /* Negotiation. */

    result<std::uint64_t> get_features() noexcept
    {
        std::uint64_t features = 0;
        const int rc = vuf_client_get_features(get(), &features);
        return {rc, features};
    }
    result<void> set_features(std::uint64_t features) noexcept
    {
        return result<void>(vuf_client_set_features(get(), features));
    }
    result<std::uint64_t> get_protocol_features() noexcept
    {
        std::uint64_t features = 0;
        const int rc = vuf_client_get_protocol_features(get(), &features);
        return {rc, features};
    }
    result<void> set_protocol_features(std::uint64_t features) noexcept
    {
        return result<void>(vuf_client_set_protocol_features(get(), features));
    }
    result<void> set_owner() noexcept { return result<void>(vuf_client_set_owner(get())); }
    result<void> reset_owner() noexcept { return result<void>(vuf_client_reset_owner(get())); }
    result<std::uint64_t> get_queue_num() noexcept
    {
        std::uint64_t num = 0;
        const int rc = vuf_client_get_queue_num(get(), &num);
        return {rc, num};
    }
    result<std::uint64_t> get_max_mem_slots() noexcept
    {
        std::uint64_t slots = 0;
        const int rc = vuf_client_get_max_mem_slots(get(), &slots);
        return {rc, slots};
    }

    /* Memory. */

    result<void> set_mem_table(view<const vuf_mem_region> regions) noexcept
    {
        return result<void>(vuf_client_set_mem_table(get(), regions.data(), regions.size()));
    }
    result<void> add_mem_region(const vuf_mem_region &region) noexcept
    {
        return result<void>(vuf_client_add_mem_region(get(), &region));
    }
    result<void> remove_mem_region(const vuf_mem_region &region) noexcept
    {
        return result<void>(vuf_client_remove_mem_region(get(), &region));
    }
    result<void> send_iotlb(const vuf_iotlb &iotlb) noexcept
    {
        return result<void>(vuf_client_send_iotlb(get(), &iotlb));
    }
    result<void> post_iotlb(const vuf_iotlb &iotlb) noexcept
    {
        return result<void>(vuf_client_post_iotlb(get(), &iotlb));
    }
    result<void> set_log_base(std::uint64_t mmap_size, std::uint64_t mmap_offset, int fd) noexcept
    {
        return result<void>(vuf_client_set_log_base(get(), mmap_size, mmap_offset, fd));
    }
    result<void> set_log_fd(int fd) noexcept
    {
        return result<void>(vuf_client_set_log_fd(get(), fd));
    }

    /* Postcopy. */

    result<unique_fd> postcopy_advise() noexcept
    {
        int fd = -1;
        const int rc = vuf_client_postcopy_advise(get(), &fd);
        return {rc, unique_fd(fd)};
    }
    result<void> postcopy_listen() noexcept
    {
        return result<void>(vuf_client_postcopy_listen(get()));
    }
    /* Where each region begins in the back-end; zeros behind the last one. */
    result<std::array<std::uint64_t, VUF_MAX_MEM_REGIONS>>
    postcopy_set_mem_table(view<const vuf_mem_region> regions) noexcept
    {
        std::array<std::uint64_t, VUF_MAX_MEM_REGIONS> bases{};
        const int rc = vuf_client_postcopy_set_mem_table(get(), regions.data(), regions.size(),
                                                         bases.data());
        return {rc, bases};
    }
    result<void> postcopy_ack_mem_table() noexcept
    {
        return result<void>(vuf_client_postcopy_ack_mem_table(get()));
    }
    result<void> postcopy_end() noexcept { return result<void>(vuf_client_postcopy_end(get())); }

    /* Rings. */

    result<void> set_vring_num(std::uint32_t index, std::uint32_t num) noexcept
    {
        return result<void>(vuf_client_set_vring_num(get(), index, num));
    }
    result<void> set_vring_addr(std::uint32_t index, const vuf_vring_addr &addr) noexcept
    {
        return result<void>(vuf_client_set_vring_addr(get(), index, &addr));
    }
    result<void> set_vring_base(std::uint32_t index, std::uint32_t base) noexcept
    {
        return result<void>(vuf_client_set_vring_base(get(), index, base));
    }
    result<std::uint32_t> get_vring_base(std::uint32_t index,
                                         std::uint32_t timeout_ms = VUF_TIMEOUT_DEFAULT) noexcept
    {
        std::uint32_t base = 0;
        const int rc = vuf_client_get_vring_base(get(), index, timeout_ms, &base);
        return {rc, base};
    }
    result<std::uint32_t> get_vring_base_skip_drain(std::uint32_t index) noexcept
    {
        std::uint32_t base = 0;
        const int rc = vuf_client_get_vring_base_skip_drain(get(), index, &base);
        return {rc, base};
    }
    result<void> set_vring_endian(std::uint32_t index, std::uint32_t endian) noexcept
    {
        return result<void>(vuf_client_set_vring_endian(get(), index, endian));
    }
    result<void> set_vring_kick(std::uint32_t index, int fd) noexcept
    {
        return result<void>(vuf_client_set_vring_kick(get(), index, fd));
    }
    result<void> vring_kick(std::uint32_t index) noexcept
    {
        return result<void>(vuf_client_vring_kick(get(), index));
    }
    result<void> set_vring_call(std::uint32_t index, int fd) noexcept
    {
        return result<void>(vuf_client_set_vring_call(get(), index, fd));
    }
    result<void> set_vring_err(std::uint32_t index, int fd) noexcept
    {
        return result<void>(vuf_client_set_vring_err(get(), index, fd));
    }
    result<void> set_vring_enable(std::uint32_t index, bool enable) noexcept
    {
        return result<void>(vuf_client_set_vring_enable(get(), index, enable));
    }
    /* * has what became of them also after a failure. */
    result<vuf_submit_result> submit(view<const vuf_op> ops, std::uint32_t flags = 0,
                                     std::uint32_t timeout_ms = VUF_TIMEOUT_DEFAULT) noexcept
    {
        auto became = make<vuf_submit_result>();
        /* As it stays where nothing was looked at. */
        became.failed = became.ring = -1;
        const int rc =
            vuf_client_submit(get(), ops.data(), ops.size(), flags, timeout_ms, &became);
        return {rc, became};
    }

    /* The device. */

    result<void> get_config(std::uint32_t offset, std::uint32_t flags, void *buffer,
                            std::size_t len) noexcept
    {
        return result<void>(vuf_client_get_config(get(), offset, flags, buffer, len));
    }
    /* The bytes as a T, in the byte order in which they came: little-endian. */
    template <class T>
    result<T> get_config(std::uint32_t offset = 0, std::uint32_t flags = 0) noexcept
    {
        static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= VUF_MAX_CONFIG_SIZE);
        T value{};
        const int rc = vuf_client_get_config(get(), offset, flags, &value, sizeof value);
        return {rc, value};
    }
    result<void> set_config(std::uint32_t offset, std::uint32_t flags, const void *buffer,
                            std::size_t len) noexcept
    {
        return result<void>(vuf_client_set_config(get(), offset, flags, buffer, len));
    }
    result<inflight_buffer> get_inflight_fd(std::uint16_t num_queues,
                                            std::uint16_t queue_size) noexcept
    {
        inflight_buffer buffer;
        int fd = -1;
        const int rc = vuf_client_get_inflight_fd(get(), num_queues, queue_size,
                                                  &buffer.description, &fd);
        buffer.fd.reset(fd);
        return {rc, std::move(buffer)};
    }
    result<void> set_inflight_fd(const vuf_inflight &inflight, int fd) noexcept
    {
        return result<void>(vuf_client_set_inflight_fd(get(), &inflight, fd));
    }
    result<void> set_inflight_fd(const inflight_buffer &buffer) noexcept
    {
        return set_inflight_fd(buffer.description, buffer.fd.get());
    }
    /* The channel that the back-end wants to use instead; none where yours is used. */
    result<unique_fd> set_device_state_fd(std::uint32_t direction, std::uint32_t phase,
                                          int fd) noexcept
    {
        int reply_fd = -1;
        const int rc = vuf_client_set_device_state_fd(get(), direction, phase, fd, &reply_fd);
        return {rc, unique_fd(reply_fd)};
    }
    result<void> check_device_state() noexcept
    {
        return result<void>(vuf_client_check_device_state(get()));
    }
    result<unique_fd> get_shared_object(const uuid &object) noexcept
    {
        int fd = -1;
        const int rc = vuf_client_get_shared_object(get(), object.data(), &fd);
        return {rc, unique_fd(fd)};
    }
    result<void> reset_device() noexcept { return result<void>(vuf_client_reset_device(get())); }
    result<void> set_status(std::uint32_t status) noexcept
    {
        return result<void>(vuf_client_set_status(get(), status));
    }
    result<std::uint32_t> get_status() noexcept
    {
        std::uint32_t status = 0;
        const int rc = vuf_client_get_status(get(), &status);
        return {rc, status};
    }
    result<vuf_shmem_config> get_shmem_config() noexcept
    {
        auto config = make<vuf_shmem_config>();
        const int rc = vuf_client_get_shmem_config(get(), &config);
        return {rc, config};
    }
    result<void> send_rarp(std::uint64_t mac) noexcept
    {
        return result<void>(vuf_client_send_rarp(get(), mac));
    }
    result<void> net_set_mtu(std::uint32_t mtu) noexcept
    {
        return result<void>(vuf_client_net_set_mtu(get(), mtu));
    }
    result<void> gpu_set_socket(int fd) noexcept
    {
        return result<void>(vuf_client_gpu_set_socket(get(), fd));
    }
    result<std::uint64_t> create_crypto_session(const vuf_crypto_session &session) noexcept
    {
        std::uint64_t session_id = 0;
        const int rc = vuf_client_create_crypto_session(get(), &session, &session_id);
        return {rc, session_id};
    }
    result<void> close_crypto_session(std::uint64_t session_id) noexcept
    {
        return result<void>(vuf_client_close_crypto_session(get(), session_id));
    }

    /* The back-end's channel. */

    result<void> set_backend_req_fd(int fd) noexcept
    {
        return result<void>(vuf_client_set_backend_req_fd(get(), fd));
    }
    /* handler: see backend_ops. */
    template <class H> result<void> open_backend_channel(H &handler) noexcept
    {
        return result<void>(vuf_client_open_backend_channel(get(), &backend_ops<H>,
                                                            detail::user_of(handler)));
    }
    /* Borrowed, or a negative code. */
    int backend_fd() const noexcept { return vuf_client_backend_fd(get()); }
    result<void> process_backend_requests() noexcept
    {
        return result<void>(vuf_client_process_backend_requests(get()));
    }

    /* Looking on. */

    /* callback(const vuf_trace_record &) */
    template <class F> result<void> set_trace(F &callback) noexcept
    {
        return result<void>(
            vuf_client_set_trace(get(), &detail::trace<F>, detail::user_of(callback)));
    }
    result<void> set_trace(std::nullptr_t) noexcept
    {
        return result<void>(vuf_client_set_trace(get(), nullptr, nullptr));
    }
    result<vuf_counters> get_counters() const noexcept
    {
        auto counters = make<vuf_counters>();
        const int rc = vuf_client_get_counters(get(), &counters);
        return {rc, counters};
    }

  private:
    vuf_client *get() const noexcept { return handle_.get(); }

    std::unique_ptr<vuf_client, detail::free_client> handle_;
};

/* ---- back-ends as programs ---- */

/* Owns a struct vuf_backend_programs, or none: calls then fail with -EINVAL. */
class backend_programs {
  public:
    backend_programs() noexcept = default;
    backend_programs(vuf_backend_programs *owned, std::size_t size) noexcept
        : handle_(owned), size_(size)
    {
    }

    static result<backend_programs>
    find(const vuf_backend_search &search = make<vuf_backend_search>()) noexcept
    {
        vuf_backend_programs *out = nullptr;
        std::size_t n = 0;
        const int rc = vuf_backend_programs_find(&search, &out, &n);
        return {rc, backend_programs(out, n)};
    }

    explicit operator bool() const noexcept { return handle_ != nullptr; }
    /* For the C functions. It stays the list's. */
    vuf_backend_programs *native_handle() const noexcept { return handle_.get(); }
    /* How many there are. */
    std::size_t size() const noexcept { return handle_ != nullptr ? size_ : 0; }
    /* Frees it, and the texts in it; there is none then. */
    void free() noexcept { handle_.reset(); }

    /* Its texts are valid until the list is freed. */
    result<vuf_backend_program> get(std::size_t index) const noexcept
    {
        auto program = make<vuf_backend_program>();
        const int rc = vuf_backend_programs_get(handle_.get(), index, &program);
        return {rc, program};
    }
    result<void> ask(std::size_t index, std::uint32_t timeout_ms = VUF_TIMEOUT_DEFAULT) noexcept
    {
        return result<void>(vuf_backend_programs_ask(handle_.get(), index, timeout_ms));
    }

  private:
    std::unique_ptr<vuf_backend_programs, detail::free_backend_programs> handle_;
    std::size_t size_ = 0;
};

/* Owns a struct vuf_backend_process, or none: calls then fail with -EINVAL. The process
   is killed where it still runs when it is destroyed. */
class backend_process {
  public:
    backend_process() noexcept = default;
    explicit backend_process(vuf_backend_process *owned) noexcept : handle_(owned) {}

    static result<backend_process>
    start(c_text program, const vuf_backend_process_options &options =
                              make<vuf_backend_process_options>()) noexcept
    {
        vuf_backend_process *out = nullptr;
        const int rc = vuf_backend_process_start(program.get(), &options, &out);
        return {rc, backend_process(out)};
    }

    explicit operator bool() const noexcept { return handle_ != nullptr; }
    /* For the C functions. It stays the process's. */
    vuf_backend_process *native_handle() const noexcept { return handle_.get(); }
    /* Yours from here on. */
    [[nodiscard]] vuf_backend_process *release() noexcept { return handle_.release(); }
    /* Frees it; there is none then. */
    void free() noexcept { handle_.reset(); }

    /* Or a negative code. */
    int get_pid() const noexcept { return vuf_backend_process_get_pid(get()); }
    /* Borrowed, or a negative code. */
    int get_fd() const noexcept { return vuf_backend_process_get_fd(get()); }
    result<unique_fd> take_socket() noexcept
    {
        int fd = -1;
        const int rc = vuf_backend_process_take_socket(get(), &fd);
        return {rc, unique_fd(fd)};
    }
    result<void> signal(int number) noexcept
    {
        return result<void>(vuf_backend_process_signal(get(), number));
    }
    result<vuf_backend_exit> get_exit() const noexcept
    {
        auto ended = make<vuf_backend_exit>();
        const int rc = vuf_backend_process_get_exit(get(), &ended);
        return {rc, ended};
    }
    result<vuf_backend_exit> wait(std::uint32_t timeout_ms = VUF_TIMEOUT_DEFAULT) noexcept
    {
        auto ended = make<vuf_backend_exit>();
        const int rc = vuf_backend_process_wait(get(), timeout_ms, &ended);
        return {rc, ended};
    }
    result<vuf_backend_exit> terminate(std::uint32_t timeout_ms = VUF_TIMEOUT_DEFAULT) noexcept
    {
        auto ended = make<vuf_backend_exit>();
        const int rc = vuf_backend_process_terminate(get(), timeout_ms, &ended);
        return {rc, ended};
    }

  private:
    vuf_backend_process *get() const noexcept { return handle_.get(); }

    std::unique_ptr<vuf_backend_process, detail::free_backend_process> handle_;
};

/* ---- the device ---- */

/* Owns a struct vuf_device, or none: calls then fail with -EINVAL. Not to be destroyed
   inside a callback of its own. */
class device {
  public:
    device() noexcept = default;
    explicit device(vuf_device *owned) noexcept : handle_(owned) {}

    static result<device>
    open(c_text path, const vuf_device_options &options = make<vuf_device_options>()) noexcept
    {
        vuf_device *out = nullptr;
        const int rc = vuf_device_open(path.get(), &options, &out);
        return {rc, device(out)};
    }
    static result<device>
    listen(c_text path, std::uint32_t mode,
           const vuf_device_options &options = make<vuf_device_options>()) noexcept
    {
        vuf_device *out = nullptr;
        const int rc = vuf_device_listen(path.get(), mode, &options, &out);
        return {rc, device(out)};
    }
    /* Without a descriptor: one is supplied later. */
    static result<device>
    open_fd(unique_fd &&fd,
            const vuf_device_options &options = make<vuf_device_options>()) noexcept
    {
        vuf_device *out = nullptr;
        const int rc = vuf_device_open_fd(fd.get(), &options, &out);
        if (rc == 0) {
            static_cast<void>(fd.release());
        }
        return {rc, device(out)};
    }

    explicit operator bool() const noexcept { return handle_ != nullptr; }
    /* For the C functions. It stays the device's. */
    vuf_device *native_handle() const noexcept { return handle_.get(); }
    /* Yours from here on. */
    [[nodiscard]] vuf_device *release() noexcept { return handle_.release(); }
    /* Frees it; there is none then. */
    void free() noexcept { handle_.reset(); }

    /* The event loop. */

    /* Borrowed, or a negative code. */
    int get_fd() const noexcept { return vuf_device_get_fd(get()); }
    result<vuf_device_event> process() noexcept
    {
        auto event = make<vuf_device_event>();
        const int rc = vuf_device_process(get(), &event);
        return {rc, event};
    }
    result<void> wait(std::uint32_t timeout_ms = VUF_TIMEOUT_DEFAULT) noexcept
    {
        return result<void>(vuf_device_wait(get(), timeout_ms));
    }
    result<void> wait_connected(std::uint32_t timeout_ms = VUF_TIMEOUT_DEFAULT) noexcept
    {
        return result<void>(vuf_device_wait_connected(get(), timeout_ms));
    }
    result<vuf_device_info> get_info() const noexcept
    {
        auto info = make<vuf_device_info>();
        const int rc = vuf_device_get_info(get(), &info);
        return {rc, info};
    }
    /* Options for a device of this type. */
    static result<vuf_device_options> options_for(std::uint32_t device_id) noexcept
    {
        auto options = make<vuf_device_options>();
        const int rc = vuf_device_options_for(device_id, &options);
        return {rc, options};
    }
    static result<std::uint32_t> config_size_for(std::uint32_t device_id,
                                                 std::uint64_t features) noexcept
    {
        std::uint32_t size = 0;
        const int rc = vuf_device_config_size_for(device_id, features, &size);
        return {rc, size};
    }
    static result<std::uint64_t> hidden_features_for(std::uint32_t device_id) noexcept
    {
        std::uint64_t features = 0;
        const int rc = vuf_device_hidden_features_for(device_id, &features);
        return {rc, features};
    }
    result<bool> is_connected() const noexcept
    {
        const int rc = vuf_device_is_connected(get());
        return {rc < 0 ? rc : 0, rc == 1};
    }
    result<bool> is_settled() const noexcept
    {
        const int rc = vuf_device_is_settled(get());
        return {rc < 0 ? rc : 0, rc == 1};
    }
    result<std::uint64_t> get_offered_features() const noexcept
    {
        std::uint64_t features = 0;
        const int rc = vuf_device_get_offered_features(get(), &features);
        return {rc, features};
    }
    /* The generation, and the one up to which everything is confirmed. */
    result<std::pair<std::uint64_t, std::uint64_t>> get_generation() const noexcept
    {
        std::pair<std::uint64_t, std::uint64_t> both{0, 0};
        const int rc = vuf_device_get_generation(get(), &both.first, &both.second);
        return {rc, both};
    }
    /* GET_STATUS of the back-end, which is waited for. */
    result<std::uint32_t>
    get_backend_status(std::uint32_t timeout_ms = VUF_TIMEOUT_DEFAULT) noexcept
    {
        std::uint32_t status = 0;
        const int rc = vuf_device_get_backend_status(get(), timeout_ms, &status);
        return {rc, status};
    }
    /* The file of an object that the back-end exports, under 16 bytes. */
    result<unique_fd>
    get_shared_object(const std::uint8_t *bytes,
                      std::uint32_t timeout_ms = VUF_TIMEOUT_DEFAULT) noexcept
    {
        int fd = -1;
        const int rc = vuf_device_get_shared_object(get(), bytes, timeout_ms, &fd);
        return {rc, unique_fd(fd)};
    }
    result<vuf_counters> get_counters() const noexcept
    {
        auto counters = make<vuf_counters>();
        const int rc = vuf_device_get_counters(get(), &counters);
        return {rc, counters};
    }
    /* callback(const vuf_trace_record &) */
    template <class F> result<void> set_trace(F &callback) noexcept
    {
        return result<void>(
            vuf_device_set_trace(get(), &detail::trace<F>, detail::user_of(callback)));
    }
    result<void> set_trace(std::nullptr_t) noexcept
    {
        return result<void>(vuf_device_set_trace(get(), nullptr, nullptr));
    }
    result<void> reconnect() noexcept { return result<void>(vuf_device_reconnect(get())); }
    result<void> set_fd(unique_fd &&fd) noexcept
    {
        const int rc = vuf_device_set_fd(get(), fd.get());
        if (rc == 0) {
            static_cast<void>(fd.release());
        }
        return result<void>(rc);
    }
    result<void> set_process(backend_process &process) noexcept
    {
        return result<void>(vuf_device_set_process(get(), process.native_handle()));
    }

    /* Features and configuration. */

    result<void> set_features(std::uint64_t features) noexcept
    {
        return result<void>(vuf_device_set_features(get(), features));
    }
    result<void> set_mtu(std::uint32_t mtu) noexcept
    {
        return result<void>(vuf_device_set_mtu(get(), mtu));
    }
    result<void> send_rarp(std::uint64_t mac) noexcept
    {
        return result<void>(vuf_device_send_rarp(get(), mac));
    }
    result<void> set_gpu_socket(unique_fd &&fd) noexcept
    {
        const int rc = vuf_device_set_gpu_socket(get(), fd.get());
        if (rc == 0) {
            static_cast<void>(fd.release());
        }
        return result<void>(rc);
    }
    /* VUF_VRING_LITTLE_ENDIAN or VUF_VRING_BIG_ENDIAN, of a legacy driver. */
    result<void> set_vring_endian(std::uint32_t endian) noexcept
    {
        return result<void>(vuf_device_set_vring_endian(get(), endian));
    }
    /* The generation. */
    result<std::uint32_t> read_config(std::uint32_t offset, void *buffer,
                                      std::size_t len) const noexcept
    {
        std::uint32_t generation = 0;
        const int rc = vuf_device_read_config(get(), offset, buffer, len, &generation);
        return {rc, generation};
    }
    /* The bytes as a T, in the byte order in which they came: little-endian. */
    template <class T>
    result<T> read_config(std::uint32_t offset = 0,
                          std::uint32_t *generation = nullptr) const noexcept
    {
        static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= VUF_MAX_CONFIG_SIZE);
        T value{};
        const int rc = vuf_device_read_config(get(), offset, &value, sizeof value, generation);
        return {rc, value};
    }
    result<void> overlay_config(std::uint32_t offset, const void *buffer,
                                std::size_t len) noexcept
    {
        return result<void>(vuf_device_overlay_config(get(), offset, buffer, len));
    }
    result<void> write_config(std::uint32_t offset, const void *buffer, std::size_t len) noexcept
    {
        return result<void>(vuf_device_write_config(get(), offset, buffer, len));
    }

    /* VUF_CONFIG_SIZE_LATER: the size, once the features are known. */
    result<void> set_config_size(std::uint32_t size) noexcept
    {
        return result<void>(vuf_device_set_config_size(get(), size));
    }
    /* Fails with -EAGAIN while the space has not been read since the last write. The
       generation. */
    result<std::uint32_t> read_current_config(std::uint32_t offset, void *buffer,
                                              std::size_t len) const noexcept
    {
        std::uint32_t generation = 0;
        const int rc = vuf_device_read_current_config(get(), offset, buffer, len, &generation);
        return {rc, generation};
    }
    /* Until the space has been read since each write that was made before. */
    result<void> wait_config(std::uint32_t timeout_ms = VUF_TIMEOUT_DEFAULT) noexcept
    {
        return result<void>(vuf_device_wait_config(get(), timeout_ms));
    }
    result<void> assume_config(std::uint32_t offset, const void *buffer, std::size_t len) noexcept
    {
        return result<void>(vuf_device_assume_config(get(), offset, buffer, len));
    }

    /* Memory. */

    result<void> set_memory(view<const vuf_mem_region> regions, std::uint32_t flags = 0) noexcept
    {
        return result<void>(
            vuf_device_set_memory(get(), regions.data(), regions.size(), flags));
    }
    result<void> add_memory(const vuf_mem_region &region) noexcept
    {
        return result<void>(vuf_device_add_memory(get(), &region));
    }
    result<vuf_quiet> remove_memory(std::uint64_t guest_addr, std::uint64_t size) noexcept
    {
        auto quiet = make<vuf_quiet>();
        const int rc = vuf_device_remove_memory(get(), guest_addr, size, &quiet);
        return {rc, quiet};
    }
    result<void> memory_fits(view<const vuf_mem_region> regions) const noexcept
    {
        return result<void>(vuf_device_memory_fits(get(), regions.data(), regions.size()));
    }
    /* VUF_MEMORY_*; where that is not known, VUF_MEMORY_PENDING: the back-end may have
       more than is wanted. */
    result<std::uint32_t> get_memory_state() const noexcept
    {
        std::uint32_t state = VUF_MEMORY_PENDING;
        const int rc = vuf_device_get_memory_state(get(), &state);
        return {rc, state};
    }
    result<void> post_iotlb(const vuf_iotlb &iotlb) noexcept
    {
        return result<void>(vuf_device_post_iotlb(get(), &iotlb));
    }

    /* Rings. */

    result<void> start(view<const vuf_ring> rings) noexcept
    {
        return result<void>(vuf_device_start(get(), rings.data(), rings.size()));
    }
    result<void> set_call(std::uint32_t index, int fd) noexcept
    {
        return result<void>(vuf_device_set_call(get(), index, fd));
    }
    /* These rings: none where the list is empty, whatever its pointer is. */
    result<vuf_quiet> stop(view<const std::uint32_t> rings, std::uint32_t mode,
                           std::uint32_t timeout_ms) noexcept
    {
        const std::uint32_t none = 0;
        auto quiet = make<vuf_quiet>();
        const int rc = vuf_device_stop(get(), rings.size() == 0 ? &none : rings.data(),
                                       rings.size(), mode, timeout_ms, &quiet);
        return {rc, quiet};
    }
    result<vuf_quiet> stop_all(std::uint32_t mode, std::uint32_t timeout_ms) noexcept
    {
        auto quiet = make<vuf_quiet>();
        const int rc = vuf_device_stop(get(), nullptr, 0, mode, timeout_ms, &quiet);
        return {rc, quiet};
    }
    /* The status byte that the guest reads; where that is not known, what it wrote. */
    result<std::uint8_t> get_virtio_status(std::uint8_t written) const noexcept
    {
        std::uint8_t status = written;
        const int rc = vuf_device_get_virtio_status(get(), written, &status);
        return {rc, status};
    }
    result<vuf_quiet> reset(std::uint32_t timeout_ms) noexcept
    {
        auto quiet = make<vuf_quiet>();
        const int rc = vuf_device_reset(get(), timeout_ms, &quiet);
        return {rc, quiet};
    }
    result<vuf_quiet> get_quiet() const noexcept
    {
        auto quiet = make<vuf_quiet>();
        const int rc = vuf_device_get_quiet(get(), &quiet);
        return {rc, quiet};
    }
    result<std::uint32_t> get_vring_base(std::uint32_t index) const noexcept
    {
        std::uint32_t base = 0;
        const int rc = vuf_device_get_vring_base(get(), index, &base);
        return {rc, base};
    }

  private:
    vuf_device *get() const noexcept { return handle_.get(); }

    std::unique_ptr<vuf_device, detail::free_device> handle_;
};

/* ---- the group ---- */

/* Owns a struct vuf_memory_group, or none: calls then fail with -EINVAL. Devices may
   be destroyed before it and after it. */
class memory_group {
  public:
    memory_group() noexcept = default;
    explicit memory_group(vuf_memory_group *owned) noexcept : handle_(owned) {}

    /* vuf_memory_group_new() */
    static result<memory_group> create() noexcept
    {
        vuf_memory_group *out = nullptr;
        const int rc = vuf_memory_group_new(&out);
        return {rc, memory_group(out)};
    }

    explicit operator bool() const noexcept { return handle_ != nullptr; }
    /* For the C functions. It stays the group's. */
    vuf_memory_group *native_handle() const noexcept { return handle_.get(); }
    /* Yours from here on. */
    [[nodiscard]] vuf_memory_group *release() noexcept { return handle_.release(); }
    /* Frees it; there is none then. */
    void free() noexcept { handle_.reset(); }

    result<void> join(device &member) noexcept
    {
        return result<void>(vuf_memory_group_join(get(), member.native_handle()));
    }
    result<void> leave(device &member) noexcept
    {
        return result<void>(vuf_memory_group_leave(get(), member.native_handle()));
    }
    result<void> set_memory(view<const vuf_mem_region> regions, std::uint32_t flags = 0) noexcept
    {
        return result<void>(
            vuf_memory_group_set_memory(get(), regions.data(), regions.size(), flags));
    }
    result<void> add_memory(const vuf_mem_region &region) noexcept
    {
        return result<void>(vuf_memory_group_add_memory(get(), &region));
    }
    result<void> remove_memory(std::uint64_t guest_addr, std::uint64_t size) noexcept
    {
        return result<void>(vuf_memory_group_remove_memory(get(), guest_addr, size));
    }
    result<void> memory_fits(view<const vuf_mem_region> regions) const noexcept
    {
        return result<void>(
            vuf_memory_group_memory_fits(get(), regions.data(), regions.size()));
    }
    result<void> wait(std::uint32_t timeout_ms = VUF_TIMEOUT_DEFAULT) noexcept
    {
        return result<void>(vuf_memory_group_wait(get(), timeout_ms));
    }

  private:
    vuf_memory_group *get() const noexcept { return handle_.get(); }

    std::unique_ptr<vuf_memory_group, detail::free_memory_group> handle_;
};

} // namespace VUF_DETAIL_VERSION
} // namespace vuf

#undef VUF_DETAIL_VERSION
#undef VUF_DETAIL_JOIN

#endif

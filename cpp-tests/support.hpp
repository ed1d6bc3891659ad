/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What the C++ tests share. They are compiled with exceptions and RTTI, and without
   either; REQUIRE goes on after a failure then, which the empty results allow. */
#ifndef SUPPORT_HPP
#define SUPPORT_HPP

#ifndef __cpp_exceptions
#define DOCTEST_CONFIG_NO_EXCEPTIONS_BUT_WITH_ALL_ASSERTS
#endif
#include <doctest/doctest.h>

#include <vhost_user_frontend.hpp>

#include <initializer_list>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

extern "C" {
#include "harness.h"
#include "virtio_blk.h"
}

/* For results: what failed is said. */
#define OK(call)                                                                                   \
    do {                                                                                           \
        const auto &outcome_ = (call);                                                             \
        INFO(std::string(outcome_.message()));                                                     \
        REQUIRE(static_cast<bool>(outcome_));                                                      \
    } while (0)

/* A program that serves, until the end of the test. */
class program {
  public:
    /* The scripted back-end, with these statements. */
    static program mock(std::initializer_list<const char *> statements)
    {
        program made;
        std::vector<const char *> args;
        for (const char *statement : statements) {
            args.push_back("-e");
            args.push_back(statement);
        }
        args.push_back(nullptr);
        REQUIRE(backend_start_mock(&made.backend_, args.data()) == 0);
        return made;
    }
    /* The embedded block back-end. */
    static program disk()
    {
        program made;
        REQUIRE(backend_start_embedded(&made.backend_, 1, false) == 0);
        return made;
    }
    program(program &&other) noexcept : backend_(std::exchange(other.backend_, backend{})) {}
    program(const program &) = delete;
    program &operator=(const program &) = delete;
    program &operator=(program &&) = delete;
    ~program() { backend_stop(&backend_); }

    void kill() { backend_kill(&backend_); }
    void again() { REQUIRE(backend_again_embedded(&backend_, 1, false) == 0); }
    std::string path() const { return backend_.socket; }
    std::string disk_path() const { return backend_.disk; }

  private:
    program() = default;

    backend backend_{};
};

/* No descriptor is open at its end that was not at its beginning. */
class fd_guard {
  public:
    fd_guard() = default;
    fd_guard(const fd_guard &) = delete;
    fd_guard &operator=(const fd_guard &) = delete;
    ~fd_guard() { CHECK(count_fds() == before_); }
    /* How many more there are now. */
    int more() const { return count_fds() - before_; }

  private:
    int before_ = count_fds();
};

/* Collects the lines of messages. */
struct tracer {
    std::vector<std::string> lines;
    void operator()(const vuf_trace_record &record) { lines.emplace_back(record.text); }
    std::string first() const { return lines.empty() ? std::string() : lines.front(); }
};

#endif

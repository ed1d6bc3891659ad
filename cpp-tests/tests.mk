# Read by the Makefile: the tests of vhost_user_frontend.hpp, as one program with
# exceptions and RTTI and one without. They need doctest.

CXX      ?= c++
# Not optimised: quicker to compile, and what is inline is a function all the same.
CXXFLAGS ?= -g
CPP_OUT  := build/cpp-tests
CPP_USE   = -std=c++17 -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wold-style-cast \
            -Werror $(CXXFLAGS) -Iinclude -Iexamples -Ic-tests
CPP_HEADERS := $(wildcard include/*.h* cpp-tests/*.hpp c-tests/harness.h examples/virtio_blk.h)
CPP_HELPERS := $(CPP_OUT)/harness.o $(CPP_OUT)/virtio_blk.o

.PHONY: cpp-tests
cpp-tests: $(CPP_OUT)/test_exceptions $(CPP_OUT)/test_bare build/vuf-mock-backend

$(CPP_OUT)/%.o: c-tests/%.c $(CPP_HEADERS)
	@mkdir -p $(@D)
	$(CC) $(USE) -c -o $@ $<

$(CPP_OUT)/%.o: examples/%.c $(CPP_HEADERS)
	@mkdir -p $(@D)
	$(CC) $(USE) -c -o $@ $<

# CPP_PROGRAM NAME FLAGS
define CPP_PROGRAM
$(CPP_OUT)/$(1)/%.o: cpp-tests/%.cpp $(CPP_HEADERS)
	@mkdir -p $$(@D)
	$$(CXX) $$(CPP_USE) $(2) -c -o $$@ $$<

$(CPP_OUT)/test_$(1): $(patsubst cpp-tests/%.cpp,$(CPP_OUT)/$(1)/%.o,$(wildcard cpp-tests/*.cpp)) \
    $(CPP_HELPERS) $(SO)
	$$(CXX) -o $$@ $$(filter %.o,$$^) $$(LINK)
endef
$(eval $(call CPP_PROGRAM,exceptions,))
$(eval $(call CPP_PROGRAM,bare,-fno-exceptions -fno-rtti))

# Builds, installs, demonstrates and tests libvhost_user_frontend.
#
#   make              the libraries and tools, under build/
#   make demo         the main job, on the embedded back-end (BACKEND=qemu: on
#                     qemu-storage-daemon)
#   make check        all tests; make check-full adds the slow ones
#   make bench        compares speed and size with others (VUF_BENCH_ROUNDS=n)
#   make fuzz         FUZZ_SECONDS=n for each fuzz target (Rust nightly)
#   make docs         the reference of the C and of the Rust interface, under
#                     build/docs (needs doxygen)
#   make install      honours DESTDIR, PREFIX and LIBDIR
#   make dist         the source with all crates, to be built offline, under build/
#   make header       regenerates include/vhost_user_frontend.h
#   make abi-baseline adds what is new to abi/ (docs/abi.md)

CARGO   ?= cargo
CC      ?= cc
CFLAGS  ?= -O2 -g
OBJCOPY ?= objcopy
PREFIX  ?= /usr/local
LIBDIR  ?= $(PREFIX)/lib
MANDIR  ?= $(PREFIX)/share/man
BACKEND ?= embedded

NAME    := vhost_user_frontend
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
HEADER  := include/$(NAME).h
SONAME  := $(shell sed -n 's/^.define VUF_SONAME "\(.*\)"/\1/p' $(HEADER))
# What a static link needs; held against rustc's own list by `make check`.
NATIVE  := -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc

TABLE   := src/ffi/api/table.rs
MAP     := src/$(NAME).map
# As sed has it: each function of the map, in place of \1.
EXPORTED = sed -n 's/^ *\(vuf_[a-z0-9_]*\);.*/$(1)/p' $(MAP)
SO      := build/lib$(NAME).so
ARCHIVE := build/lib$(NAME).a
OBJECT  := $(ARCHIVE:.a=.o)
STATIC  := build/cargo/release/lib$(NAME).a
# The same source gives the same bytes, wherever it and cargo's own directory lie.
# (With a space in their names they stay: RUSTFLAGS cannot have any.)
remap   = $(if $(word 2,$(1)),,--remap-path-prefix=$(1)=$(2))
REMAP   := $(call remap,$(CURDIR),.) $(call remap,$(or $(CARGO_HOME),$(HOME)/.cargo),/cargo)
BUILD   := RUSTFLAGS='$(strip $(RUSTFLAGS) $(REMAP))' $(CARGO)
# Apart from target/, so that other cargo commands do not swap in an archive
# that was made without LTO.
RUSTC   := $(BUILD) rustc --release --locked --lib --target-dir build/cargo

STRICT  := -std=c11 -D_GNU_SOURCE -Wall -Wextra -Wpedantic -Werror -Wstrict-prototypes \
           -Wmissing-prototypes -Wshadow
USE     := $(STRICT) $(CPPFLAGS) $(CFLAGS) '-ffile-prefix-map=$(CURDIR)=.' -Iinclude -Iexamples
# Programs in build/ find the library beside them.
RPATH   := -Wl,-rpath,'$$ORIGIN' -Wl,-rpath,'$$ORIGIN/..'
LINK    := -Lbuild -l$(NAME) $(RPATH) $(LDFLAGS)

# Every test program gets the harness and the example driver.
C_OUT   := build/c-tests
C_TESTS := $(patsubst c-tests/%.c,$(C_OUT)/%,$(wildcard c-tests/test_*.c c-tests/real_*.c))
HELPERS := c-tests/harness.c c-tests/rig.c examples/virtio_blk.c examples/names.c
# Those that drive back-ends in daily use.
REAL    := $(HELPERS) examples/virtq.c c-tests/device.c c-tests/lifecycle.c \
           c-tests/pagefaults.c

FUZZ_SECONDS ?= 60

.PHONY: all lib tools c-tests demo bench fuzz check check-full header header-check abi-baseline install uninstall clean FORCE
.DELETE_ON_ERROR:
# As old as its beginning: what is changed meanwhile is newer.
BUILT := build/built
BEGUN := $(shell date +%s.%N)
all: lib tools
	@touch -d @$(BEGUN) $(BUILT)

lib: $(SO) $(ARCHIVE)

$(STATIC): FORCE
	$(RUSTC) --crate-type staticlib -- --print native-static-libs=build/native-static-libs

# What rustc makes has all of std in it, under the names of every other Rust
# archive: two of them do not go into one program. So it becomes one object, in
# which only the functions of the map are seen from outside. The groups, which a
# linker would unite with those of the other archive, go, and so does the bitcode
# that other versions of LLVM cannot read.
$(OBJECT): $(STATIC) $(MAP)
	$(call EXPORTED,\1) > $@.exports
	sed 's/^/-Wl,-u,/' $@.exports > $@.roots
	$(CC) -r -nostdlib -o $@ @$@.roots $<
	$(OBJCOPY) -R .group -R .llvmbc -R .llvmcmd --keep-global-symbols=$@.exports $@

$(ARCHIVE): $(OBJECT)
	rm -f $@
	$(AR) rcs $@ $<

# A version script given to rustc's own linker call is ignored or refused, so
# the library is linked from the archive: only what the map names, and all of
# it, or the link fails.
$(SO).$(VERSION): $(ARCHIVE) $(MAP)
	$(CC) -shared -o $@ @$(OBJECT).roots $< \
	  -Wl,--version-script=$(MAP) -Wl,--no-undefined-version \
	  -Wl,-soname,$(SONAME) -Wl,--gc-sections -Wl,-Bsymbolic \
	  -Wl,-z,relro,-z,now,-z,defs,-z,noexecstack,-z,nodelete -Wl,--as-needed \
	  $(LDFLAGS) $(NATIVE)

$(SO): $(SO).$(VERSION)
	ln -sf $(<F) $(@D)/$(SONAME)
	ln -sf $(SONAME) $@

tools: build/vhost-user-probe build/blk-demo build/blk-resilient build/event-loop \
       build/virtiofs-ls build/net-loop build/vuf-mock-backend

# A program for those who write front-ends, in a package of its own.
build/vuf-mock-backend: FORCE
	$(BUILD) build --release --locked --manifest-path mock/Cargo.toml --target-dir build/mock
	cp build/mock/release/vuf-mock-backend $@

PROBE   := examples/vhost_user_probe.c examples/names.c
build/vhost-user-probe: $(PROBE) examples/names.h $(SO) include/$(NAME).h
	$(CC) $(USE) -o $@ $(PROBE) $(LINK)

build/blk-demo: examples/blk_demo.c examples/virtio_blk.c examples/names.c examples/virtio_blk.h examples/names.h $(SO) include/$(NAME).h
	$(CC) $(USE) -o $@ $(filter %.c,$^) $(LINK)

build/blk-resilient: examples/blk_resilient.c examples/virtio_blk.c examples/names.c examples/virtio_blk.h examples/names.h $(SO) include/$(NAME).h
	$(CC) $(USE) -o $@ $(filter %.c,$^) $(LINK)

build/event-loop: examples/event_loop.c examples/event_loop_guest.c examples/event_loop_guest.h examples/virtio_blk.c examples/names.c examples/virtio_blk.h examples/names.h $(SO) include/$(NAME).h
	$(CC) $(USE) -o $@ $(filter %.c,$^) $(LINK)

# One device of any kind: the monitor's part, and a queue as drivers see it.
VMM := examples/vmm.c examples/virtq.c examples/virtio_blk.c examples/vmm.h examples/virtq.h \
       examples/virtio_blk.h

build/virtiofs-ls: examples/virtiofs_ls.c $(VMM) $(SO) include/$(NAME).h
	$(CC) $(USE) -o $@ $(filter %.c,$^) $(LINK)

build/net-loop: examples/net_loop.c $(VMM) $(SO) include/$(NAME).h
	$(CC) $(USE) -o $@ $(filter %.c,$^) $(LINK)

c-tests: $(C_TESTS) build/vuf-mock-backend

# Not linked with the library, nor with a helper that is.
$(C_OUT)/test_dlopen $(C_OUT)/test_api: $(C_OUT)/%: c-tests/%.c c-tests/harness.c c-tests/harness.h $(C_OUT)/functions.h $(SO) include/$(NAME).h
	@mkdir -p $(@D)
	$(CC) $(USE) -Ic-tests -I$(C_OUT) -o $@ $(filter %.c,$^) -lcmocka -ldl -pthread $(RPATH) $(LDFLAGS)

# The names of all functions.
$(C_OUT)/test_layout: $(C_OUT)/functions.h
$(C_OUT)/functions.h: $(MAP)
	@mkdir -p $(@D)
	{ printf '#define FUNCTIONS(X)'; $(call EXPORTED, X(\1)) | tr -d '\n'; echo; } > $@

$(C_OUT)/real_%: c-tests/real_%.c $(REAL) $(wildcard c-tests/*.h examples/*.h) $(SO) include/$(NAME).h
	@mkdir -p $(@D)
	$(CC) $(USE) -Ic-tests -o $@ $< $(REAL) -lcmocka $(LINK)

# What the tests of a device share.
$(C_OUT)/test_device $(C_OUT)/test_device_config $(C_OUT)/test_device_promises: c-tests/device_rig.c

$(C_OUT)/%: c-tests/%.c $(HELPERS) $(wildcard c-tests/*.h examples/*.h) $(SO) include/$(NAME).h
	@mkdir -p $(@D)
	$(CC) $(USE) -Ic-tests -I$(C_OUT) -o $@ $(filter %.c,$^) -lcmocka $(LINK)

include cpp-tests/tests.mk

demo: lib build/blk-demo
	CARGO="$(CARGO)" sh examples/demo.sh $(BACKEND)

check: lib tools
	MAKE="$(MAKE)" CC="$(CC)" CARGO="$(CARGO)" sh c-tests/check.sh

check-full: lib tools
	MAKE="$(MAKE)" CC="$(CC)" CARGO="$(CARGO)" sh c-tests/check.sh --full

# One after the other, on a machine that does nothing else.
bench: lib
	$(CARGO) build --quiet --release --locked --examples
	CC="$(CC)" $(CARGO) bench --quiet --locked --bench '*'

fuzz:
	@$(CARGO) +nightly --version >/dev/null 2>&1 || \
	  { echo 'make fuzz needs a nightly Rust: rustup toolchain install nightly'; exit 1; }
	@$(CARGO) fuzz --version >/dev/null 2>&1 || $(CARGO) install cargo-fuzz --locked
	@for target in replies c_api channel device programs; do \
	  mkdir -p build/fuzz/$$target && \
	  $(CARGO) +nightly fuzz run --target-dir build/fuzz/cargo $$target \
	    build/fuzz/$$target fuzz/corpus/$$target -- -max_total_time=$(FUZZ_SECONDS) \
	    -timeout=10 -malloc_limit_mb=64 -max_len=4096 -print_final_stats=1 || exit 1; \
	done

# The header is made by cbindgen, and the table of vuf_get_api() from the map, in
# the build script, behind a cargo feature.
HEADER_BUILD = VUF_MAP="$(abspath $(MAP))" VUF_HEADER="$(abspath $(1))" \
               VUF_TABLE="$(abspath $(2))" $(CARGO) check --quiet --locked --lib \
               --features header --target-dir build/cargo
header:
	$(call HEADER_BUILD,$(HEADER),$(TABLE))

header-check:
	@mkdir -p build
	@rm -f build/$(NAME).h.fresh build/table.rs.fresh
	@$(call HEADER_BUILD,build/$(NAME).h.fresh,build/table.rs.fresh)
	@diff -u $(HEADER) build/$(NAME).h.fresh || \
	  { echo '$(HEADER) is stale; run: make header'; exit 1; }
	@diff -u $(TABLE) build/table.rs.fresh || \
	  { echo '$(TABLE) is stale; run: make header'; exit 1; }

.PHONY: docs install-man uninstall-man dist
# What has no words is an error, in all of them.
RUSTDOC := RUSTDOCFLAGS='-D warnings' $(CARGO) doc --quiet --locked --lib --no-deps
docs:
	@rm -rf build/docs build/cargo/doc build/mock/doc && mkdir -p build/docs
	doxygen docs/Doxyfile
	$(RUSTDOC) --target-dir build/cargo
	$(RUSTDOC) --target-dir build/mock --manifest-path mock/Cargo.toml
	mv build/cargo/doc build/docs/rust
	mv build/mock/doc build/docs/mock
	@echo build/docs/html/index.html build/docs/rust/$(NAME)/index.html

MAN1 := $(wildcard man/*.1)
MAN7 := $(wildcard man/*.7)
install: install-man
install-man:
	install -d $(DESTDIR)$(MANDIR)/man1 $(DESTDIR)$(MANDIR)/man7
	install -m 644 $(MAN1) $(DESTDIR)$(MANDIR)/man1/
	install -m 644 $(MAN7) $(DESTDIR)$(MANDIR)/man7/

uninstall: uninstall-man
uninstall-man:
	rm -f $(MAN1:man/%=$(DESTDIR)$(MANDIR)/man1/%) $(MAN7:man/%=$(DESTDIR)$(MANDIR)/man7/%)

dist:
	CARGO="$(CARGO)" sh packaging/dist.sh $(NAME)-$(VERSION)

abi-baseline:
	CC="$(CC)" sh c-tests/check_abi.sh --baseline

# Where LIBDIR lies below PREFIX, which is the rule, the files that describe the
# installed tree find it from where they are, so that it can be moved.
BELOW   := $(LIBDIR:$(PREFIX)/%=%)
ROOT    := $(if $(filter-out $(LIBDIR),$(BELOW)),$(shell echo $(BELOW) | sed 's|[^/]\{1,\}|..|g'))
FILL_IN  = sed -e 's|@VERSION@|$(VERSION)|g' -e 's|@SONAME@|$(SONAME)|g' -e 's|@NATIVE@|$(NATIVE)|g' \
           -e 's|@PC_PREFIX@|$(if $(ROOT),$${pcfiledir}/../$(ROOT),$(PREFIX))|' \
           -e 's|@PC_LIBDIR@|$(if $(ROOT),$${prefix}/$(BELOW),$(LIBDIR))|' \
           -e 's|@CMAKE_PREFIX@|$(if $(ROOT),$${vuf_libdir}/$(ROOT),$(PREFIX))|'
# The probe is linked once more for where it goes: there it finds the library beside its
# own folder, and looks nowhere else. Who gives an empty RPATH wants none.
PLACE    = -Wl,-rpath,'$(if $(ROOT),$$ORIGIN/../$(BELOW),$(LIBDIR))'
INSTALLED_RPATH = $(if $(RPATH),$(PLACE))
PUBLIC  := $(wildcard include/*.h include/*.hpp)
CMAKE   := $(LIBDIR)/cmake/$(NAME)

# Only what was not built, or has changed since, is built by it: who installs as root may
# have no cargo, or one that would make all of it again. (Where nothing was built, find
# says so.)
SOURCES := build.rs Cargo.lock Cargo.toml examples include mock/Cargo.* mock/src src
install: $(if $(shell find $(SOURCES) -type f -newer $(BUILT) 2>&1),all)
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/include \
	  $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(CMAKE)
	install -m 755 build/vuf-mock-backend $(DESTDIR)$(PREFIX)/bin/
	$(CC) $(USE) -o $(DESTDIR)$(PREFIX)/bin/vhost-user-probe $(PROBE) -Lbuild -l$(NAME) \
	  $(INSTALLED_RPATH) $(LDFLAGS)
	install -m 644 $(PUBLIC) $(DESTDIR)$(PREFIX)/include/
	install -m 755 $(SO).$(VERSION) $(DESTDIR)$(LIBDIR)/
	ln -sf lib$(NAME).so.$(VERSION) $(DESTDIR)$(LIBDIR)/$(SONAME)
	ln -sf $(SONAME) $(DESTDIR)$(LIBDIR)/lib$(NAME).so
	install -m 644 $(ARCHIVE) $(DESTDIR)$(LIBDIR)/
	$(FILL_IN) pkgconfig/$(NAME).pc.in > $(DESTDIR)$(LIBDIR)/pkgconfig/$(NAME).pc
	$(FILL_IN) cmake/$(NAME)-config.cmake.in > $(DESTDIR)$(CMAKE)/$(NAME)-config.cmake
	$(FILL_IN) cmake/$(NAME)-config-version.cmake.in > $(DESTDIR)$(CMAKE)/$(NAME)-config-version.cmake

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/vhost-user-probe $(DESTDIR)$(PREFIX)/bin/vuf-mock-backend \
	  $(PUBLIC:include/%=$(DESTDIR)$(PREFIX)/include/%) \
	  $(DESTDIR)$(LIBDIR)/lib$(NAME).so $(DESTDIR)$(LIBDIR)/$(SONAME) \
	  $(DESTDIR)$(LIBDIR)/lib$(NAME).so.$(VERSION) $(DESTDIR)$(LIBDIR)/lib$(NAME).a \
	  $(DESTDIR)$(LIBDIR)/pkgconfig/$(NAME).pc \
	  $(DESTDIR)$(CMAKE)/$(NAME)-config.cmake $(DESTDIR)$(CMAKE)/$(NAME)-config-version.cmake
	-rmdir $(DESTDIR)$(CMAKE)

clean:
	rm -rf build
	$(CARGO) clean

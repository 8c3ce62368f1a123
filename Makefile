# Balsa: SQLite, replicated with Raft, from inside SQLite.
#
#   make                    build/balsa.so (for .load), build/libbalsa.a, build/libbalsa.so
#   make demo               three nodes, a real data set, a killed leader: watch it work
#   make test               everything that is checked before a change goes in
#   make soak               the same for hours: more seeds, more rounds (SOAK=4 is four times as much)
#   make lint               clang-format, clang-tidy, cppcheck
#   make install PREFIX=…   balsa.so, the libraries, balsa.h, balsa.pc
#   make deps               the Debian packages that are missing
#
# Parts of `make test`, each also alone:
#   make layers  make unit  make trace  make sim SEED=7 (or SEEDS=1..100)  make mutants
#   make damage SEED=7 (or DAMAGE_SEEDS=1..1000)  make power SEED=7 (or SEEDS=1..100)
#   make whole SEED=7 (or SEEDS=1..500)
#   make syncs  make asan  make tsan  make installed  make cluster
# One unit test:         make unit TESTS=test_slot_file
#
# Options: CC=gcc|clang  WERROR=1  ASAN=1 (address + undefined)  TSAN=1  BUILD=folder
# Every variant has a folder of its own below $(BUILD); flags that change rebuild what they touch.

.SUFFIXES:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
SHELL := /bin/sh

VERSION := $(shell sed -n 's/^\#define BALSA_VERSION "\(.*\)"/\1/p' ext/balsa.h)
SONAME_VERSION := 0

ifeq ($(origin CC),default)
CC := gcc
endif
AR ?= ar
NM ?= nm
BUILD ?= build
WERROR ?= $(if $(CI),1)
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

# ---- Variants ----

OUT := $(BUILD)
SANITIZE :=
ifneq ($(ASAN),)
OUT := $(BUILD)/asan
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
endif
ifneq ($(TSAN),)
OUT := $(BUILD)/tsan
SANITIZE := -fsanitize=thread -fno-omit-frame-pointer
endif

# ---- Flags ----

WARNINGS := -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes \
  -Wold-style-definition -Wpointer-arith -Wwrite-strings -Wvla -Wimplicit-fallthrough -Wformat=2
# Sentences have a limit with a name and are cut there (only gcc counts their bytes), and an impossible
# branch is an assert(!"sentence") (only clang minds).
ifeq ($(findstring clang,$(CC)),)
WARNINGS += -Wno-format-truncation
else
WARNINGS += -Wno-string-conversion
endif
ifneq ($(WERROR),)
WARNINGS += -Werror
endif
OPTIMIZE ?= -O2 -g
# Assertions stay on: never NDEBUG.
BALSA_CFLAGS := -std=gnu11 -D_GNU_SOURCE -fPIC -fvisibility=hidden -pthread \
  $(OPTIMIZE) $(WARNINGS) $(SANITIZE) $(CFLAGS)
CORE_CFLAGS := $(BALSA_CFLAGS) -DSQLITE_CORE
TEST_CFLAGS := $(CORE_CFLAGS) -I.
BALSA_LDFLAGS := -pthread $(SANITIZE) $(LDFLAGS)
LIBS := -luv -llz4 -lxxhash
SQLITE_LIBS ?= -lsqlite3
# What is not ours must be named at link time: balsa.so reaches SQLite through the pointer it was
# given and nothing else. Sanitizers leave their own symbols open.
ifeq ($(SANITIZE),)
DEFS := -Wl,-z,defs
endif
SHARED := -shared $(DEFS) -Wl,--as-needed -Wl,--exclude-libs,ALL

# ---- Sources ----

SOURCES := $(sort $(wildcard raft/*.c raft/io/*.c vfs/*.c snapshot/*.c ext/*.c))
MUTANT_SOURCES := $(sort $(wildcard raft/*.c)) raft/io/store.c
EXT_OBJECTS := $(SOURCES:%.c=$(OUT)/ext-objects/%.o)
CORE_OBJECTS := $(SOURCES:%.c=$(OUT)/core-objects/%.o)
FAULT_OBJECTS := $(patsubst %.c,$(OUT)/test-objects/%.o,$(sort $(wildcard tests/fault/*.c)))
TRACE_OBJECTS := $(patsubst %.c,$(OUT)/test-objects/%.o,$(sort $(wildcard tests/trace/*.c)))
WHOLE_OBJECTS := $(patsubst %.c,$(OUT)/test-objects/%.o,$(sort $(wildcard tests/whole/*.c)))
POWER_OBJECTS := $(patsubst %.c,$(OUT)/test-objects/%.o,$(sort $(wildcard tests/power/*.c)))
SIM_OBJECTS := $(patsubst %.c,$(OUT)/test-objects/%.o,$(sort $(wildcard tests/sim/*.c)))
UNIT_TESTS := $(patsubst tests/unit/%.c,%,$(sort $(wildcard tests/unit/test_*.c)))
UNIT_HELPER_OBJECTS := $(patsubst %.c,$(OUT)/test-objects/%.o,\
  $(filter-out tests/unit/test_%.c,$(sort $(wildcard tests/unit/*.c))))
DAMAGE_OBJECTS := $(patsubst %.c,$(OUT)/test-objects/%.o,$(sort $(wildcard tests/damage/*.c)))
BENCH_OBJECTS := $(patsubst %.c,$(OUT)/test-objects/%.o,$(sort $(wildcard bench/*.c)))

# Known-bad variants of the core and the log, each of which the simulation must catch.
MUTANTS := COMMIT_OLD_TERM VOTE_WITHOUT_PERSIST ACK_BEFORE_SYNC LOST_AT_TRUNCATION PRE_VOTE_NO_TERM_CHECK \
  LEASE_WITHOUT_CHECK_QUORUM LEASE_FROM_ANSWER RESTART_VOTES_IN_LEASE WIPED_VOTER_VOTES \
  COMPACT_UNCOMMITTED INSTALL_KEEPS_CONFLICT SNAPSHOT_ACK_EARLY SEGMENTS_BEFORE_BASE \
  SINGLE_SERVER_CHANGE_WITHOUT_OWN_TERM CONFIGURATION_AT_COMMIT JOINT_ONE_MAJORITY LEASE_KEPT_IN_HAND_OVER \
  LATE_HAND_OVER_HEEDED RESEEDED_VOTES

# Known-bad variants of the node, each of which the simulation of whole nodes must catch.
WHOLE_MUTANTS := TICKET_BEFORE_NOOP STALE_EPOCH ROLLBACK_SKIPS_GATE REELECTED_KEEPS_SPECULATION APPLY_BEFORE_DURABLE \
  GROWN_PAGE_AS_PATCH
# Where each is hunted.
WHOLE_HUNT_STALE_EPOCH := --profile flapping
WHOLE_HUNT_ROLLBACK_SKIPS_GATE := --profile flapping
WHOLE_HUNT_REELECTED_KEEPS_SPECULATION := --profile flapping
WHOLE_HUNT_APPLY_BEFORE_DURABLE := --profile disks
WHOLE_MUTANT_SOURCES := ext/node_apply.c ext/node_write.c vfs/apply.c vfs/capture.c vfs/connection.c

ifeq ($(V),)
Q := @
say = @printf '  %-8s %s\n' $(1) $(2)
else
say = @:
endif

.PHONY: all
all: $(OUT)/balsa.so $(OUT)/libbalsa.a $(OUT)/libbalsa.so

# A change of compiler or flags rebuilds.
FLAGS_NOW := $(CC) $(CORE_CFLAGS) $(BALSA_LDFLAGS)
$(OUT)/flags: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' '$(subst ','\'',$(FLAGS_NOW))' | cmp -s - $@ || printf '%s\n' '$(subst ','\'',$(FLAGS_NOW))' > $@
.PHONY: FORCE
FORCE:

$(OUT)/ext-objects/%.o: %.c $(OUT)/flags
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(BALSA_CFLAGS) -MMD -MP -c -o $@ $<

$(OUT)/core-objects/%.o: %.c $(OUT)/flags
	$(call say,CC,"$< (core)")
	@mkdir -p $(@D)
	$(Q)$(CC) $(CORE_CFLAGS) -MMD -MP -c -o $@ $<

$(OUT)/test-objects/%.o: %.c $(OUT)/flags
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(TEST_CFLAGS) -MMD -MP -c -o $@ $<

# nodelete: the node's threads outlive the connection that loaded us.
$(OUT)/balsa.so: $(EXT_OBJECTS)
	$(call say,LD,$@)
	$(Q)$(CC) $(BALSA_LDFLAGS) $(SHARED) -Wl,-z,nodelete -o $@ $(EXT_OBJECTS) $(LIBS)

$(OUT)/libbalsa.so: $(CORE_OBJECTS)
	$(call say,LD,$@)
	$(Q)$(CC) $(BALSA_LDFLAGS) $(SHARED) -Wl,-soname,libbalsa.so.$(SONAME_VERSION) -o $@ $(CORE_OBJECTS) $(LIBS) $(SQLITE_LIBS)
	@ln -sf libbalsa.so $(OUT)/libbalsa.so.$(SONAME_VERSION)

$(OUT)/libbalsa.a: $(CORE_OBJECTS)
	$(call say,AR,$@)
	@rm -f $@
	$(Q)$(AR) rcs $@ $(CORE_OBJECTS)

# ---- Test programs ----

# Archives come last, so a program links what it uses and may bring parts of its own.
TEST_LINK = $(CC) $(BALSA_LDFLAGS) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LIBS) $(SQLITE_LIBS)

$(OUT)/tests/unit-helpers.a: $(UNIT_HELPER_OBJECTS)
	$(call say,AR,$@)
	@mkdir -p $(@D)
	@rm -f $@
	$(Q)$(AR) rcs $@ $(UNIT_HELPER_OBJECTS)

$(OUT)/tests/unit/%: $(OUT)/test-objects/tests/unit/%.o $(FAULT_OBJECTS) $(OUT)/tests/unit-helpers.a $(OUT)/libbalsa.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(TEST_LINK) -lcmocka

$(OUT)/tests/trace: $(TRACE_OBJECTS) $(FAULT_OBJECTS) $(OUT)/libbalsa.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(TEST_LINK) -lcmocka

$(OUT)/tests/sim: $(SIM_OBJECTS) $(FAULT_OBJECTS) $(OUT)/libbalsa.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(TEST_LINK)

$(OUT)/tests/power: $(POWER_OBJECTS) $(FAULT_OBJECTS) $(OUT)/libbalsa.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(TEST_LINK)

$(OUT)/tests/damage: $(DAMAGE_OBJECTS) $(OUT)/libbalsa.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(TEST_LINK)

# The scheduler takes the place of pthread's mutexes and conditions there, network.c that of raft/io/transport.c.
WHOLE_WRAPS := pthread_mutex_lock pthread_mutex_trylock pthread_mutex_unlock pthread_mutex_init pthread_mutex_destroy \
  pthread_cond_signal pthread_cond_broadcast getpid
WHOLE_LINK = $(TEST_LINK) $(WHOLE_WRAPS:%=-Wl,--wrap=%)

$(OUT)/tests/whole: $(WHOLE_OBJECTS) $(FAULT_OBJECTS) $(OUT)/libbalsa.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(WHOLE_LINK)

define MUTANT
$(OUT)/mutant-objects/$(1)/%.o: %.c $(OUT)/flags
	@mkdir -p $$(@D)
	$(Q)$(CC) $(CORE_CFLAGS) -DRAFT_MUTANT_$(1) -MMD -MP -c -o $$@ $$<
$(OUT)/tests/sim-$(1): $(MUTANT_SOURCES:%.c=$(OUT)/mutant-objects/$(1)/%.o) $(SIM_OBJECTS) $(FAULT_OBJECTS) $(OUT)/libbalsa.a
	$(call say,LD,$$@)
	@mkdir -p $$(@D)
	$(Q)$$(TEST_LINK)
endef
$(foreach mutant,$(MUTANTS),$(eval $(call MUTANT,$(mutant))))
define WHOLE_MUTANT
$(OUT)/mutant-objects/$(1)/%.o: %.c $(OUT)/flags
	@mkdir -p $$(@D)
	$(Q)$(CC) $(CORE_CFLAGS) -DBALSA_MUTANT_$(1) -MMD -MP -c -o $$@ $$<
$(OUT)/tests/whole-$(1): $(WHOLE_MUTANT_SOURCES:%.c=$(OUT)/mutant-objects/$(1)/%.o) $(WHOLE_OBJECTS) $(FAULT_OBJECTS) $(OUT)/libbalsa.a
	$(call say,LD,$$@)
	@mkdir -p $$(@D)
	$(Q)$$(WHOLE_LINK)
endef
$(foreach mutant,$(WHOLE_MUTANTS),$(eval $(call WHOLE_MUTANT,$(mutant))))
MUTANT_PROGRAMS := $(MUTANTS:%=$(OUT)/tests/sim-%) $(WHOLE_MUTANTS:%=$(OUT)/tests/whole-%)

# Known-bad variants of the node, each of which the loss of power must find: where the sources name them.
NODE_MUTANTS := CHECKPOINT_BEYOND_LOG REDO_SHORT CUT_ACKNOWLEDGED COMPACT_BEYOND_CHECKPOINT
define NODE_MUTANT
$(OUT)/node-mutant-objects/$(1)/%.o: %.c $(OUT)/flags
	@mkdir -p $$(@D)
	$(Q)$(CC) $(CORE_CFLAGS) -DBALSA_MUTANT_$(1) -MMD -MP -c -o $$@ $$<
$(OUT)/tests/power-$(1): $(patsubst %.c,$(OUT)/node-mutant-objects/$(1)/%.o,$(shell grep -l BALSA_MUTANT_$(1) $(SOURCES))) \
  $(POWER_OBJECTS) $(FAULT_OBJECTS) $(OUT)/libbalsa.a
	$(call say,LD,$$@)
	@mkdir -p $$(@D)
	$(Q)$$(TEST_LINK)
endef
$(foreach mutant,$(NODE_MUTANTS),$(eval $(call NODE_MUTANT,$(mutant))))
NODE_MUTANT_PROGRAMS := $(NODE_MUTANTS:%=$(OUT)/tests/power-%)

.SECONDARY:

# ---- Running tests ----
#
# tests/run.sh runs one program, counts what passed and failed, and adds it to $(RESULTS). A part
# asked for alone sums up by itself; within `make test` the end does it.

RESULTS ?= $(OUT)/results-$(firstword $(MAKECMDGOALS))
RUN := RESULTS=$(RESULTS) VARIANT=$(if $(ASAN),asan,$(if $(TSAN),tsan)) sh tests/run.sh
SUM := $(if $(WITHIN),true,sh tests/run.sh --sum $(RESULTS))
BEGIN := $(if $(WITHIN),true,mkdir -p $(OUT) && rm -f $(RESULTS))
# make -j of our own, unless this make was called with one.
PARALLEL = $(MAKE) --no-print-directory $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(JOBS))
# Runs the named targets in parallel, all of them even if some fail, then sums up.
run_all = $(BEGIN); status=0; \
  $(if $(strip $(1)),$(PARALLEL) -k WITHIN=1 RESULTS=$(RESULTS) $(1) 2>/dev/null || status=1;) \
  $(SUM) && exit $$status

SEED ?=
SEEDS ?= 1..200
SCALE ?= 1
scaled = $(shell echo $$(($(1) * $(SCALE))))
DAMAGE_SEEDS ?= 1..$(call scaled,300)
MUTANT_SEEDS ?= 1..3000
# Many seeds are shared by the cores, in slices large enough for each fault class to occur in each.
SIM_SLICE_MIN := 200
slices = $(shell echo $(1) | awk -F '[.][.]' '{ \
  n = int(($$2 - $$1 + 1) / $(SIM_SLICE_MIN)); if (n > $(JOBS)) n = $(JOBS); if (n < 1) n = 1; \
  for (i = 0; i < n; i++) printf "%d..%d ", $$1 + int(($$2 - $$1 + 1) * i / n), $$1 + int(($$2 - $$1 + 1) * (i + 1) / n) - 1 }')
SIM_SLICES = $(call slices,$(SEEDS))
POWER_SEEDS ?= $(if $(filter command line,$(origin SEEDS)),$(SEEDS),1..1000)
WHOLE_SEEDS ?= $(if $(filter command line,$(origin SEEDS)),$(SEEDS),1..300)
NODE_MUTANT_SEEDS ?= 1..600
POWER_SLICES = $(call slices,$(POWER_SEEDS))
TRACES ?= $(sort $(wildcard tests/trace/*.txt))
TESTS ?= $(UNIT_TESTS)
# With threads of their own: what ThreadSanitizer has something to say about.
THREADED_TESTS ?= $(patsubst tests/unit/%.c,%,$(sort $(shell grep -lsE \
  'pthread_create|os_thread_start|raft_transport_get|balsa_init' tests/unit/test_*.c)))

.PHONY: unit trace sim power syncs whole mutants damage layers asan tsan cluster
unit: $(TESTS:%=$(OUT)/tests/unit/%)
	+@$(call run_all,$(TESTS:%=run-unit-%))

trace: $(if $(TRACE_OBJECTS),$(OUT)/tests/trace)
	+@$(call run_all,$(if $(TRACE_OBJECTS),run-trace))

sim: $(if $(SIM_OBJECTS),$(OUT)/tests/sim)
	+@$(call run_all,$(if $(SIM_OBJECTS),$(if $(SEED),run-sim-seed,$(SIM_SLICES:%=run-sim-%))))

# Whole nodes that lose their power, again and again: tests/power/power.h.
power: $(OUT)/tests/power
	+@$(call run_all,$(if $(SEED),run-power-seed,$(POWER_SLICES:%=run-power-%)))

# Whole nodes, one thread at a time: tests/whole/whole.c. Some seeds run twice, to see that a run is its seed's.
whole: $(OUT)/tests/whole
	+@$(call run_all,$(if $(SEED),run-whole-seed,run-whole run-whole-twice))

# A mutant passes its test when the simulation fails.
mutants: $(if $(SIM_OBJECTS),$(MUTANT_PROGRAMS)) $(NODE_MUTANT_PROGRAMS)
	+@$(call run_all,$(if $(SIM_OBJECTS),$(MUTANTS:%=run-mutant-%)) $(NODE_MUTANTS:%=run-node-mutant-%) \
	  $(WHOLE_MUTANTS:%=run-whole-mutant-%))

# The power is lost with one sync after the other left out: each must be missed.
syncs: $(OUT)/tests/power
	+@$(call run_all,run-syncs)

# A range is shared by the cores.
DAMAGE_SLICES = $(shell echo $(DAMAGE_SEEDS) | awk -F '[.][.]' '{ \
  n = $$2 - $$1 + 1; m = int((n + 1) / 2); printf "%d..%d", $$1, $$1 + m - 1; \
  if (n > 1) printf " %d..%d", $$1 + m, $$2 }')
damage: $(OUT)/tests/damage
	+@$(call run_all,$(if $(SEED),run-damage-seed,$(DAMAGE_SLICES:%=run-damage-%)))

layers: $(CORE_OBJECTS)
	+@$(call run_all,run-layers)

asan:
	+@$(PARALLEL) ASAN=1 unit trace whole cluster WHOLE_SEEDS=1..40 CLUSTER="$(ASAN_CLUSTER)"

tsan:
	+@$(PARALLEL) TSAN=1 unit TESTS="$(THREADED_TESTS)"

.PHONY: $(TESTS:%=run-unit-%) $(MUTANTS:%=run-mutant-%) $(SIM_SLICES:%=run-sim-%) run-trace run-sim-seed run-layers run-damage-seed \
  $(DAMAGE_SLICES:%=run-damage-%) $(POWER_SLICES:%=run-power-%) run-power-seed $(NODE_MUTANTS:%=run-node-mutant-%) run-syncs \
  run-whole run-whole-seed run-whole-twice $(WHOLE_MUTANTS:%=run-whole-mutant-%)
$(TESTS:%=run-unit-%): run-unit-%:
	@$(RUN) $* $(OUT)/tests/unit/$*
run-trace:
	@$(RUN) trace $(OUT)/tests/trace $(TRACES)
run-sim-seed:
	@$(RUN) --show sim-seed-$(SEED) $(OUT)/tests/sim --seed $(SEED)
$(SIM_SLICES:%=run-sim-%): run-sim-%:
	@$(RUN) --tell sim-seeds-$* $(OUT)/tests/sim --seeds $*
$(NODE_MUTANTS:%=run-node-mutant-%): run-node-mutant-%:
	@$(RUN) --must-fail node-mutant-$* $(OUT)/tests/power-$* --seeds $(NODE_MUTANT_SEEDS)
run-syncs:
	@$(RUN) --tell syncs $(OUT)/tests/power --skip-every-sync --seeds $(NODE_MUTANT_SEEDS)
run-power-seed:
	@$(RUN) --show power-seed-$(SEED) $(OUT)/tests/power --seed $(SEED)
$(POWER_SLICES:%=run-power-%): run-power-%:
	@$(RUN) --tell power-seeds-$* $(OUT)/tests/power --seeds $*
run-whole-seed:
	@$(RUN) --show whole-seed-$(SEED) $(OUT)/tests/whole --seed $(SEED)
run-whole:
	@$(RUN) --tell whole-seeds-$(WHOLE_SEEDS) $(OUT)/tests/whole --seeds $(WHOLE_SEEDS) --jobs $(JOBS)
run-whole-twice:
	@$(RUN) whole-twice $(OUT)/tests/whole --seeds 1..30 --twice
$(MUTANTS:%=run-mutant-%): run-mutant-%:
	@$(RUN) --must-fail mutant-$* $(OUT)/tests/sim-$* --seeds $(MUTANT_SEEDS)
$(WHOLE_MUTANTS:%=run-whole-mutant-%): run-whole-mutant-%:
	@$(RUN) --must-fail mutant-$* $(OUT)/tests/whole-$* --seeds $(MUTANT_SEEDS) $(WHOLE_HUNT_$*)
run-damage-seed:
	@$(RUN) --show damage-seed-$(SEED) $(OUT)/tests/damage --seed $(SEED)
$(DAMAGE_SLICES:%=run-damage-%): run-damage-%:
	@$(RUN) damage-seeds-$* $(OUT)/tests/damage --seeds $*
run-layers:
	@$(RUN) layers sh tests/layers.sh $(NM) $(OUT)/core-objects

# Real processes: Debian's python3 and sqlite3 with balsa.so. SCALE multiplies their rounds; one alone:
# make cluster CLUSTER=cutoffs, or the script by hand (each says how).
PYTHON ?= /usr/bin/python3
CLUSTER_kill = crash_rounds.py --mode kill --nodes 3 --rounds $(call scaled,3)
CLUSTER_kill5 = crash_rounds.py --mode kill --nodes 5 --rounds $(call scaled,2)
CLUSTER_stop = crash_rounds.py --mode stop --nodes 3 --rounds $(call scaled,1)
CLUSTER_cut = crash_rounds.py --mode cut --nodes 3 --commit-timeout 800 --rounds $(call scaled,2)
CLUSTER_cutoffs = cutoffs.py --rounds $(call scaled,8)
CLUSTER_outside = outside_reader.py --rounds $(call scaled,2)
CLUSTER_idle = idle_shell.py
CLUSTER_followers = follower_readers.py --seconds $(call scaled,4)
CLUSTER_clients = clients.py
CLUSTER_handover = handover.py --rounds $(call scaled,8)
CLUSTER_reincarnation = reincarnation.py --rounds $(call scaled,6)
CLUSTER_reincarnation5 = reincarnation.py --nodes 5 --rounds $(call scaled,1)
CLUSTER_namespaces = namespaces.py --rounds $(call scaled,2)
CLUSTER_recover = recover.py --rounds $(call scaled,2)
CLUSTER_removed = removed.py
CLUSTER_snapshots = snapshots.py --rounds $(call scaled,3)
CLUSTER_membership = membership.py --rounds $(call scaled,2)
CLUSTER_surface = surface.py
CLUSTER_full = full_disk.py
# The interpreter must have the sanitizer's runtime before it loads a library that needs it.
CLUSTER_PRELOAD := $(if $(ASAN),env LD_PRELOAD=$$($(CC) -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0) \
  $(if $(TSAN),env LD_PRELOAD=$$($(CC) -print-file-name=libtsan.so))
ASAN_CLUSTER ?= kill cut
CLUSTER ?= surface snapshots kill kill5 stop cut cutoffs outside idle followers clients handover reincarnation reincarnation5 recover removed namespaces full membership
cluster: $(OUT)/balsa.so
	@$(BEGIN); status=0; \
	$(foreach part,$(CLUSTER),$(RUN) --show cluster-$(part) $(CLUSTER_PRELOAD) $(PYTHON) tests/cluster/$(CLUSTER_$(part)) \
	  --extension $(abspath $(OUT))/balsa.so || status=1;) \
	$(SUM) && exit $$status

# Installs into a temporary folder and builds an application against it.
.PHONY: installed
installed: all
	@$(BEGIN); CC='$(CC)' $(RUN) installed sh tests/install/check.sh $(MAKE) --no-print-directory BUILD=$(BUILD) || status=1; \
	$(SUM) && exit $${status:-0}

# ---- The whole ----

STAGES ?= layers unit trace sim power whole mutants damage asan tsan installed cluster
.PHONY: test soak
test:
	@sh tests/deps.sh --if-missing build
	+@printf '== build with %s\n' '$(CC)'; $(PARALLEL) all
	+@mkdir -p $(OUT); rm -f $(RESULTS); began=$$(date +%s); status=0; \
	for stage in $(STAGES); do \
	  printf '== %s (after %d s)\n' $$stage $$(($$(date +%s) - began)); \
	  $(PARALLEL) WITHIN=1 RESULTS=$(RESULTS) $$stage || { status=1; echo "== $$stage FAILED"; }; \
	done; \
	printf '== done in %d s\n' $$(($$(date +%s) - began)); \
	sh tests/run.sh --sum $(RESULTS) && exit $$status

SOAK ?= 1
soak:
	+@$(MAKE) --no-print-directory test RESULTS=$(OUT)/results-soak SEEDS=1..$$((10000 * $(SOAK))) \
	  MUTANT_SEEDS=1..20000 NODE_MUTANT_SEEDS=1..5000 STAGES='$(STAGES) syncs' SCALE=$$((20 * $(SOAK)))

.PHONY: demo
demo:
	@sh tests/deps.sh --if-missing build
	+@$(PARALLEL) $(OUT)/balsa.so
	@$(PYTHON) tests/demo/demo.py --extension $(abspath $(OUT))/balsa.so

# One program, which starts itself for each node: bench/README.md.
.PHONY: bench
bench: $(OUT)/bench/bench
$(OUT)/bench/bench: $(BENCH_OBJECTS) $(OUT)/libbalsa.a
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(TEST_LINK)

# ---- Lint ----

C_FILES := $(sort $(wildcard raft/*.[ch] raft/io/*.[ch] vfs/*.[ch] snapshot/*.[ch] ext/*.[ch] shell/*.[ch] \
  tests/*/*.[ch] bench/*.[ch]))
LINT_CFLAGS := -std=gnu11 -D_GNU_SOURCE -DSQLITE_CORE -I. -Iext
.PHONY: lint lint-format lint-tidy lint-cppcheck format
lint:
	@sh tests/deps.sh --if-missing build lint
	+@$(PARALLEL) -k lint-format lint-tidy lint-cppcheck
lint-format:
	$(call say,FORMAT,'$(words $(C_FILES)) files')
	$(Q)clang-format --dry-run -Werror $(C_FILES)
lint-tidy:
	$(call say,TIDY,'$(words $(filter %.c,$(C_FILES))) files')
	$(Q)printf '%s\n' $(filter %.c,$(C_FILES)) | \
	  xargs -P $(JOBS) -I FILE clang-tidy --quiet FILE -- $(LINT_CFLAGS) -Wall -Wextra 2>/dev/null
lint-cppcheck:
	$(call say,CPPCHECK,'$(words $(filter %.c,$(C_FILES))) files')
	$(Q)cppcheck --quiet --enable=warning,performance,portability --inline-suppr --std=c11 --error-exitcode=1 \
	  --suppress=missingIncludeSystem --suppress=unknownMacro -j$(JOBS) -D_GNU_SOURCE -DSQLITE_CORE -I. $(filter %.c,$(C_FILES))
format:
	clang-format -i $(C_FILES)

# ---- Installation ----

.PHONY: install uninstall
install: all
	install -d $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(INCLUDEDIR)
	install -m 755 $(OUT)/balsa.so $(DESTDIR)$(LIBDIR)/balsa.so
	install -m 644 $(OUT)/libbalsa.a $(DESTDIR)$(LIBDIR)/libbalsa.a
	install -m 755 $(OUT)/libbalsa.so $(DESTDIR)$(LIBDIR)/libbalsa.so.$(VERSION)
	ln -sf libbalsa.so.$(VERSION) $(DESTDIR)$(LIBDIR)/libbalsa.so.$(SONAME_VERSION)
	ln -sf libbalsa.so.$(SONAME_VERSION) $(DESTDIR)$(LIBDIR)/libbalsa.so
	install -m 644 ext/balsa.h $(DESTDIR)$(INCLUDEDIR)/balsa.h
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|' \
	  -e 's|@VERSION@|$(VERSION)|' balsa.pc.in > $(DESTDIR)$(LIBDIR)/pkgconfig/balsa.pc

uninstall:
	rm -f $(addprefix $(DESTDIR)$(LIBDIR)/,balsa.so libbalsa.a libbalsa.so.$(VERSION) libbalsa.so.$(SONAME_VERSION) \
	  libbalsa.so pkgconfig/balsa.pc) $(DESTDIR)$(INCLUDEDIR)/balsa.h

# ---- Housekeeping ----

.PHONY: deps clean
deps:
	@sh tests/deps.sh build lint

clean:
	rm -rf $(BUILD)

-include $(shell [ -d $(OUT) ] && find $(OUT) -name '*.d' 2>/dev/null)

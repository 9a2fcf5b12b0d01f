# The commands of the README. `make demo` and `make test` do everything on a machine that has Python 3.10 or later,
# make and a C compiler: the first run makes a virtual environment in .venv, later ones start at once.
#
#     make demo [TEXT=path]    train a small model on a text and let it write
#     make test [ARGS=...]     install what the tests need and run them
#     make bench [QUICK=1] [ARGS=...]     time everything beside its rivals: half an hour, or 2 minutes
#     make bench-compare BASE=ref         whether this tree's kernels are slower than that one's
#     make lint | asan | tsan | neon | clean
#
# With VENV=path the environment is made there instead; BENCH=path is the benchmark's.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
BENCH_PIP = $(BENCH_BIN)/python -m pip --disable-pip-version-check
BENCH := .venv-bench
BENCH_BIN := $(BENCH)/bin
SOURCES := setup.py pyproject.toml $(wildcard csrc/*.[ch] csrc/*.py)

# The test extra of pyproject.toml: what must be there, and what is tested against where it has a wheel.
TEST_TOOLS := "pytest>=8" pytest-benchmark "setuptools>=77"
COMPANIONS := numba matplotlib onnx onnxruntime torch==2.13.0

# What the benchmark compares with: in an environment of its own, for they are heavy.
RIVALS := torch==2.13.0 onnxruntime onnx openvino jax tensorflow-cpu

.PHONY: demo test lint asan tsan neon bench bench-env bench-compare clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/python -m fastrnn.demo  # which reads $$TEXT

test: $(VENV)/tested
	$(BIN)/python -m pytest $(ARGS)

bench: bench-env
	$(BENCH_BIN)/python bench/suite.py $(if $(QUICK),--quick,--readme) $(ARGS)

bench-compare: $(VENV)/tested
	@test -n "$(BASE)" || { echo "make bench-compare needs BASE=<git ref>, what to compare with" >&2; exit 1; }
	$(BIN)/python bench/regress.py --base $(BASE) $(if $(QUICK),--quick) $(ARGS)

lint: $(VENV)/linted
	$(BIN)/ruff check

clean:
	@for folder in $(VENV) $(BENCH); do \
	    $(call ours,$$folder) && rm -rf $$folder || echo "make: $$folder is not this Makefile's, and is left" >&2; done
	rm -rf build dist *.egg-info fastrnn/*.so .benchmarks .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# ---- the virtual environment; each file is the time of something done in it ------------------------------------------

# $(call ours,folder): it was begun here, or is not there; another one, an editor's or uv's, is nobody's to remove
ours = { test -e $(1)/begun || test -e $(1)/made || ! test -e $(1); }

# Debian's Python may come without ensurepip but with a pip that can install one into another environment.
$(VENV)/made $(BENCH)/made: %/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "fastrnn needs Python 3.10 or later: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(call ours,$*) || { echo "$* exists and is not this Makefile's:" \
	    "remove it, or name another folder, make $(if $(filter $(VENV),$*),VENV,BENCH)=..." >&2; exit 1; }
	@rm -rf $*
	@mkdir -p $* && touch $*/begun
	@$(PYTHON) -m venv $* >/dev/null || \
	    { $(PYTHON) -m venv --without-pip $* && $(PYTHON) -m pip --python $*/bin/python install pip; } || \
	    { rm -rf $*; echo "$(PYTHON) cannot make a virtual environment (Debian: apt install python3-venv)" >&2; exit 1; }
	$*/bin/python -m pip --disable-pip-version-check install --quiet --upgrade pip
	@touch $@

$(VENV)/installed: $(VENV)/made $(SOURCES)
	$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/tested: $(VENV)/made $(SOURCES)
	FASTRNN_REQUIRE_C=1 $(PIP) install --quiet --editable . $(TEST_TOOLS)
	@echo "Installing what the tests compare with, once: $(COMPANIONS)"
	@$(PIP) install --quiet --only-binary :all: $(COMPANIONS) || for package in $(COMPANIONS); do \
	    $(PIP) install --quiet --only-binary :all: $$package || \
	    echo "make: no $$package for this Python and machine; the tests that compare with it are skipped" >&2; done
	@touch $@ $(VENV)/installed

bench-env: $(BENCH)/installed

$(BENCH)/installed: $(BENCH)/made $(SOURCES)
	FASTRNN_REQUIRE_C=1 $(BENCH_PIP) install --quiet --editable . numba matplotlib
	@echo "Installing what the benchmark compares with, once: $(RIVALS)"
	@for package in $(RIVALS); do $(BENCH_PIP) install --quiet --only-binary :all: $$package || \
	    echo "make: no $$package for this Python and machine; the benchmark goes without" >&2; done
	@touch $@

$(VENV)/linted: $(VENV)/made
	$(PIP) install --quiet ruff
	@touch $@

# ---- the C library under sanitizers, and for another machine ---------------------------------------------------------

ASAN := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g
TSAN := -fsanitize=thread -g
# The tests that go through the C library.
ASAN_TESTS ?= tests/test_backends.py tests/test_layers.py tests/test_stream.py
C_TESTS := $(patsubst tests/c/%.c,%,$(filter-out tests/c/test_neon.c,$(wildcard tests/c/test_*.c)))

# $(call need,program,Debian package)
need = @command -v $(1) >/dev/null || { echo "make $@ needs $(1) (Debian: apt install $(2))" >&2; exit 1; }
# $(call need_runtime,library): of the compiler's
need_runtime = @test -e "$$($(CC) -print-file-name=$(1).so)" || \
    { echo "make $@ needs the compiler's $(1) (Debian: apt install gcc, which brings it)" >&2; exit 1; }
# $(call static,folder,compiler,flags): the libraries of csrc/build.py, in a folder of their own
static = CC=$(2) CFLAGS="$(3)" FASTRNN_REQUIRE_C=1 $(BIN)/python setup.py --quiet build_clib \
    --build-clib $(1) --build-temp $(1)
# $(call program,folder,compiler,flags,name)
program = $(2) -std=gnu11 -O2 -pthread $(3) -Icsrc tests/c/$(4).c $(1)/libfrnn_core.a $(1)/*.a -lm -o $(1)/$(4)

asan: $(VENV)/tested
	$(call need_runtime,libasan)
	CC=$(CC) CFLAGS="$(ASAN)" FASTRNN_REQUIRE_C=1 $(BIN)/python setup.py --quiet build --build-base build/asan \
	    --build-lib build/asan/lib --build-temp build/asan/c
	$(foreach test,$(C_TESTS),$(call program,build/asan/c,$(CC),$(ASAN),$(test)) && build/asan/c/$(test) &&) true
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=build/asan/lib FASTRNN_BACKEND=c \
	    $(BIN)/pytest -p no:cacheprovider $(ASAN_TESTS)

tsan: $(VENV)/tested
	$(call need_runtime,libtsan)
	$(call static,build/tsan,$(CC),$(TSAN))
	$(foreach test,$(C_TESTS),$(call program,build/tsan,$(CC),$(TSAN),$(test)) && build/tsan/$(test) &&) true
	$(call program,build/tsan,$(CC),$(TSAN) -DFRNN_NO_FUTEX csrc/threads.c,test_threads)
	build/tsan/test_threads

CROSS := aarch64-linux-gnu

neon: $(VENV)/tested
	$(call need,$(CROSS)-gcc,gcc-aarch64-linux-gnu)
	$(call need,qemu-aarch64,qemu-user)
	_PYTHON_HOST_PLATFORM=linux-aarch64 AR=$(CROSS)-ar $(call static,build/neon,$(CROSS)-gcc,)
	$(call program,build/neon,$(CROSS)-gcc,-static,test_neon)
	qemu-aarch64 build/neon/test_neon

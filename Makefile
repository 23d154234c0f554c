# make demo       set up and run the demo training on this machine's CPU
# make test       set up and run the whole test suite
# make check      set up, lint, check types and run the fast tests
# make lint       ruff and pyright
# make setup-all  set up with what all tests need, so that `make test` skips tests for a GPU only
# make setup-trl  set up TRL in an environment of its own, for benchmarks/against_trl.py

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TEST_PROCESSES ?= 2
VENV := .venv
LOCK := requirements/cpu.lock
EXTRAS := requirements/extras.lock
READY := $(VENV)/.ready
READY_ALL := $(VENV)/.ready-all
TRL := .venv-trl
READY_TRL := $(TRL)/.ready
PYTEST := $(VENV)/bin/python -m pytest -n $(TEST_PROCESSES) --dist loadscope --no-loadscope-reorder

.PHONY: setup setup-all setup-trl demo test check lint clean
setup: $(READY)
setup-all: $(READY_ALL)
setup-trl: $(READY_TRL)

# torch's CPU build first: pip may know it already, otherwise PyTorch's own index has it.
$(READY): $(LOCK) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --no-deps "$$(grep '^torch==' $(LOCK))" \
	  || $(VENV)/bin/pip install -q --no-deps --index-url $(TORCH_INDEX) "$$(grep '^torch==' $(LOCK))"
	$(VENV)/bin/pip install -q --no-deps -r $(LOCK)
	$(VENV)/bin/pip install -q --no-deps --no-build-isolation -e .
	touch $@

$(READY_ALL): $(READY) $(EXTRAS)
	$(VENV)/bin/pip install -q --no-deps -r $(EXTRAS)
	touch $@

# torch and transformers of the same versions as MaxPO's.
$(READY_TRL): $(LOCK) $(EXTRAS)
	$(PYTHON) -m venv $(TRL)
	$(TRL)/bin/pip install -q "$$(grep '^torch==' $(LOCK))" \
	  || $(TRL)/bin/pip install -q --index-url $(TORCH_INDEX) "$$(grep '^torch==' $(LOCK))"
	$(TRL)/bin/pip install -q trl==1.16.0 psutil $$(grep -hE '^(transformers|accelerate|datasets)==' $(LOCK) $(EXTRAS))
	touch $@

demo: setup
	$(VENV)/bin/maxpo train configs/presets/demo.yaml

test: setup
	$(PYTEST)

check: lint
	$(PYTEST) -m "not slow" tests/contracts tests/core tests/property tests/reference

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

clean:
	rm -rf $(VENV) $(TRL) runs .pytest_cache .ruff_cache .hypothesis *.egg-info

# make demo   set up and run the demo training on this machine's CPU
# make test   set up and run the whole test suite
# make lint   ruff and pyright

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
VENV := .venv
LOCK := requirements/cpu.lock
READY := $(VENV)/.ready

.PHONY: setup demo test lint clean
setup: $(READY)

# torch's CPU build first: pip may know it already, otherwise PyTorch's own index has it.
$(READY): $(LOCK) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --no-deps "$$(grep '^torch==' $(LOCK))" \
	  || $(VENV)/bin/pip install -q --no-deps --index-url $(TORCH_INDEX) "$$(grep '^torch==' $(LOCK))"
	$(VENV)/bin/pip install -q --no-deps -r $(LOCK)
	$(VENV)/bin/pip install -q --no-deps --no-build-isolation -e .
	touch $@

demo: setup
	$(VENV)/bin/maxpo train configs/presets/demo.yaml

test: setup
	$(VENV)/bin/python -m pytest

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .hypothesis *.egg-info

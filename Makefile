# Two commands on a machine that has only Python and make: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
export OMP_WAIT_POLICY ?= PASSIVE
PYTEST := $(BIN)/python -m pytest -q -p no:cacheprovider

.PHONY: demo test test-full check docs gpu wheel clean

demo: $(INSTALLED)  ## train the quickstart on bundled photographs, upscale one, and say where the pictures are
	rm -rf runs/demo
	$(BIN)/sr-pipeline run quickstart --run-dir runs/demo/train
	$(BIN)/sr-pipeline run compare --run-dir runs/demo/upscale \
		--set generator.path=runs/demo/train/generator.safetensors
	$(BIN)/python benchmarks/demo.py runs/demo

test: check  ## what CI runs: lint, types, layers, tests with small fixed counts
	$(PYTEST)

test-full: check  ## the same with every count that an issue names
	SR_PIPELINE_FULL=1 $(PYTEST)

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(INSTALLED)  ## write the node reference
	$(BIN)/sr-pipeline nodes --markdown > docs/nodes.md

gpu: $(INSTALLED)  ## on a machine with a CUDA device: its tests, then the training benchmark
	$(PYTEST) -m gpu
	$(BIN)/python benchmarks/learns.py --device cuda

wheel: $(INSTALLED)
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf .venv runs dist .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11 to 3.13 is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[tensorboard,plot,lpips,spandrel,onnx,dev]'
	touch $@

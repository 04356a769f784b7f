# Two commands on a machine that has only Python and make: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
export OMP_WAIT_POLICY ?= PASSIVE
BROWSER ?= runs/browser
PYTEST := $(BIN)/python -m pytest -q -p no:cacheprovider

.PHONY: demo test test-full check docs gpu bench gpu-bench test-browser wheel clean

demo: $(INSTALLED)  ## train the quickstart on bundled photographs, upscale one, and say where the pictures are
	rm -rf runs/demo
	$(BIN)/sr-pipeline run quickstart --run-dir runs/demo/train
	$(BIN)/sr-pipeline run compare --run-dir runs/demo/upscale \
		--set generator.path=runs/demo/train/generator.safetensors
	$(BIN)/python benchmarks/demo.py runs/demo

test: check  ## what CI runs: lint, types, layers, tests with small fixed counts
	$(PYTEST) -n auto --maxprocesses 4

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

bench: $(INSTALLED)  ## every benchmark in small: minutes on a CPU; the full sizes are in each one's own help
	failed=0; for name in overhead step data scaling inference; do \
		$(BIN)/python benchmarks/$$name.py --quick || failed=1; done; exit $$failed

gpu-bench: $(INSTALLED)  ## on a machine with a CUDA device: its tests and all benchmarks, as JSON in benchmarks/results
	$(BIN)/python benchmarks/everything.py --device cuda || { test $$? = 75 && echo "call make gpu-bench again to go on"; }

test-browser: $(INSTALLED)  ## a real browser and a client from npm (needs chromium and Node.js); pictures in $(BROWSER)
	@command -v chromium >/dev/null || { echo "chromium is missing: apt-get install chromium" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[browser]'
	npm install --silent --no-audit --no-fund --prefix $(BROWSER)/npm @stable-canvas/comfyui-client@1.5.9 ws@8
	SR_PIPELINE_BROWSER=$(BROWSER) $(PYTEST) tests/browser

wheel: $(INSTALLED)
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf .venv runs dist .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11 to 3.13 is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[tensorboard,plot,lpips,spandrel,onnx,server,ui,shards,dev]'
	touch $@

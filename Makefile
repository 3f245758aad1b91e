# `make bench` and `make test` each set themselves up: all that is needed is Python >= 3.11 and make.

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Real data goes to the real results; the embedded default has a folder of its own.
ifdef BENCH_DATA
DATA := $(BENCH_DATA)
RESULTS ?= results
else
DATA := data/mini
RESULTS ?= results/mini
endif

MODELS ?= vit_t16 vit_t16+linear vit_t16+pooling vit_t16+agent \
	timm:vit_tiny_patch16_224 timm:resnet18 timm:mobilenetv3_small_100 timm:convnext_atto timm:efficientnet_b0 timm:regnety_002
TASKS ?= imagenet:knn cub:linear clevr_count:linear clevr_dist:linear cost
# On the embedded scenes only, and on fewer models: each trains a head.
DENSE_MODELS ?= timm:resnet18 timm:mobilenetv3_small_100
DENSE_TASKS ?= ade20k:linear,preset=mini coco:fcos,preset=mini

# Every attention in both carriers, trained at an equal budget; what has a record is skipped. From nothing, see
# docs/attention-board.md for how long it takes.
ATTENTION_RESULTS ?= results/attention

.PHONY: bench attention-board test test-slow test-gpu test-browser test-mmseg lint format setup clean

bench: $(INSTALLED)
ifndef BENCH_DATA
	$(BIN)/python run_bench.py data mini --root $(DATA)
endif
	$(BIN)/python run_bench.py run --model $(MODELS) --task $(TASKS) --data $(DATA) --results $(RESULTS) --batch-size 8
ifndef BENCH_DATA
	$(BIN)/python run_bench.py run --model $(DENSE_MODELS) --task $(DENSE_TASKS) --data $(DATA) --results $(RESULTS) --batch-size 8
endif
	$(BIN)/python run_bench.py board --results $(RESULTS)

attention-board: $(INSTALLED)
	$(BIN)/python run_bench.py suite results/suites/attention.toml --results $(ATTENTION_RESULTS)

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow --timeout 7200

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu

# Needs a Chromium of the system's, such as Debian's package.
test-browser: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[browser]'
	$(BIN)/python -m pytest -m browser

# Compiles mmcv the first time: about 12 minutes on two cores.
test-mmseg: $(INSTALLED)
	PIP_CONSTRAINT=constraints.txt docs/mmseg/build_mmcv.sh $(BIN)/python
	$(BIN)/python -m pytest -m mmseg

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or give make PYTHON=/path/to/python3."; exit 2; }
	@echo "Setting up $(VENV) once; torch makes it about 6 GB and a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) data/mini results/mini build *.egg-info

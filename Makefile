# make quickstart   a virtual environment, then prepare, train, evaluate and export on the bundled sample (CPU, minutes)
# make check        ruff, mypy and the fast tests: no peer, no other process, no TPU compiler (CPU, two minutes)
# make test         a virtual environment, the peers' environment, then every test (CPU)
# make test-mteb    installs mteb beside the peer and runs the tests that need it; `make test` skips them without it
# All take PYTHON=python3.13 or any other from 3.11 on; each version has an environment of its own.

PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ifeq ($(VERSION),)
$(error PYTHON=$(PYTHON) does not run: name a Python from 3.11 on)
endif
VENV := .venv-$(VERSION)
BIN := $(VENV)/bin
RUN := runs/quickstart
WORKERS := 2
# Files are not split between workers: their tests share what they prepare.
PYTEST := $(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder

export JAX_PLATFORMS = cpu

.PHONY: quickstart check test test-mteb lint peer clean

$(VENV)/.ready-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	touch $@

quickstart: $(VENV)/.ready-plot,report
	$(BIN)/python main.py prepare --source_dir=data/sample/train --data_config=data/sample/data_config.json \
	  --tokenizer=data/sample/model --data_dir=$(RUN)/data
	$(BIN)/python main.py train --flagfile=recipes/quickstart.flags --data_dir=$(RUN)/data --workdir=$(RUN)/run
	$(BIN)/python main.py evaluate --model=$(RUN)/run/export --suite=sts_dev --data_dir=data/sample --split=dev \
	  --pairs=data/sample/heldout.jsonl.gz --output=$(RUN)/results.json
	$(BIN)/python main.py report $(RUN) $(RUN)/run --names=evaluation,training --output=$(RUN)/report.html
	@echo "Trained encoder: $(RUN)/run/export   scores: $(RUN)/results.json   to look at: $(RUN)/report.html"

peer: $(VENV)/.ready-test
	$(BIN)/python -m benchmarks.peers.peer

check: lint
	$(PYTEST) --quiet -m "not peer and not process and not compile and not numerics"

test: $(VENV)/.ready-test peer
	$(PYTEST)

test-mteb: peer
	.venv-peer/bin/python -m pip install --quiet --disable-pip-version-check \
	  "mteb>=2,<3" "jax>=0.10" tokenizers safetensors absl-py
	$(BIN)/python -m pytest tests/evaluation/test_mteb.py

lint: $(VENV)/.ready-test
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf runs .venv-*

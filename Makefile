# make quickstart   a virtual environment, then prepare, train, evaluate and export on the bundled sample (CPU, minutes)
# make test         a virtual environment, the peers' environment, then every test (CPU)
# Both take PYTHON=python3.13 or any other from 3.11 on; each version has an environment of its own.

PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ifeq ($(VERSION),)
$(error PYTHON=$(PYTHON) does not run: name a Python from 3.11 on)
endif
VENV := .venv-$(VERSION)
BIN := $(VENV)/bin
RUN := runs/quickstart

export JAX_PLATFORMS = cpu

.PHONY: quickstart test lint peer clean

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

test: $(VENV)/.ready-test peer
	$(BIN)/python -m pytest

lint: $(VENV)/.ready-test
	$(BIN)/ruff check .

clean:
	rm -rf runs .venv-*

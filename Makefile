# On a new machine: `make quickstart` and `make test`. `make help` lists all targets.

PYTHON ?= python3
# torch is installed first: the default wheel includes gigabytes of CUDA, so a machine without a GPU gets the CPU build
# if PyTorch's index is reachable. To select another: make quickstart TORCH="torch==2.12.0 --index-url https://..."
TORCH ?= torch==2.13.0
CPU_WHEELS ?= https://download.pytorch.org/whl/cpu
VENV ?= .venv
OBJECTIVE ?= ar
# Test processes: one per core, at most 4 (each loads torch).
WORKERS ?= $(shell n=$$(env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 2); [ $$n -gt 4 ] && n=4; echo $$n)
PYTEST ?= -n $(WORKERS)

DOORS := --tasks doors_and_lights --static-size 128 --gripper-size 64 --workers 2
BIN := $(VENV)/bin
PIP := env -u PYTHONPATH $(BIN)/python -m pip --disable-pip-version-check
RUN := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python
# The targets run this checkout, even if VENV has another one installed.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

.DEFAULT_GOAL := help
.PHONY: help quickstart demo compare recipe recipe-all desk-policy headline study test test-all lint smoke venv venv-train venv-dev docs requirements clean distclean

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/.minimal ## train for minutes on embedded models and data, evaluate, print a table (OBJECTIVE=ar|mdm|bd)
	@case "$(OBJECTIVE)" in ar|mdm|bd) ;; *) echo "OBJECTIVE=$(OBJECTIVE): expected ar, mdm or bd" >&2; exit 2;; esac
	$(BIN)/python -m scripts.quickstart --objective $(OBJECTIVE)

demo: $(VENV)/.minimal ## the bundled model on the desk, with films and a report (ARGS="--instruction 'pull the drawer open'")
	@$(RUN) -m policy_rollout.demo $(ARGS)

compare: $(VENV)/.minimal ## train ar, mdm and bd equally, evaluate them on validation items: results/summary.md (ARGS="--steps 1000")
	$(BIN)/python -m scripts.compare_objectives $(ARGS)

recipe: $(VENV)/.minimal ## a small policy: record, tokenize, train, evaluate on doors and lights of the desk (docs/desk.md)
	$(RUN) preprocess_data/make_desk_demos.py --out data/desk_doors --episodes 120 $(DOORS)
	$(RUN) preprocess_data/make_desk_demos.py --out data/desk_doors --episodes 6 --split validation $(DOORS)
	$(RUN) preprocess_data/process_calvin.py --source-split-dir data/desk_doors/training --output-dir data/desk_doors_training
	$(RUN) preprocess_data/process_calvin.py --source-split-dir data/desk_doors/validation --output-dir data/desk_doors_validation
	$(RUN) preprocess_data/tokenize_images.py --data data/desk_doors_training --tokenizer assets/tiny_magvit --resolution 96 --views 1
	$(RUN) train_upvla.py config=./config/tiny_desk.yaml dataset.params.train_pre_shards_path_or_url=data/desk_doors_training
	$(RUN) -m scripts.evaluate_desk --model outputs/tiny_desk

desk-policy: recipe ## the shipped model (assets/desk_policy): that model learns future frames; evaluated as it is shipped
	$(RUN) train_upvla.py config=./config/tiny_desk_future.yaml dataset.params.train_pre_shards_path_or_url=data/desk_doors_training
	$(RUN) -m scripts.dev.package_policy --run outputs/tiny_desk_future --out assets/desk_policy
	$(RUN) -m scripts.evaluate_desk --model assets/desk_policy --output-dir outputs/desk_policy \
	    --held-out data/desk_doors_validation

recipe-all: $(VENV)/.minimal ## a policy for all 34 tasks of the desk in scene D: moments, train, evaluate (hours; docs/desk.md)
	$(RUN) -m preprocess_data.desk_moments --out data/desk_all --count 80000 --static-size 128 --gripper-size 64 --processes 2
	$(RUN) preprocess_data/tokenize_images.py --data data/desk_all/training --tokenizer assets/tiny_magvit --resolution 96 --processes 2
	$(RUN) train_upvla.py config=./config/tiny_desk_all.yaml dataset.params.train_pre_shards_path_or_url=data/desk_all/training
	$(RUN) -m scripts.evaluate_desk --model outputs/tiny_desk_all --tasks all

headline: recipe ## ar, mdm and bd continue from that model: text and actions, with closed loop: results/headline (ARGS="--seeds 0,1,2")
	$(RUN) -m scripts.compare_objectives --from-run outputs/tiny_desk --dataset-root data/desk_doors \
	    --chains 60 --batch-size-pre 8 --learning-rate 1e-3 --output-dir results/headline $(ARGS)

study: $(VENV)/.minimal ## what learning to speak does to seeing and acting: a grid of runs, hours: results/study (ARGS="--dry-run"; docs/study.md)
	$(RUN) -m scripts.study $(ARGS)

test: lint ## style, types, import rules and the CPU test suite
	$(RUN) -m pytest $(PYTEST) -m "not slow and not slurm and not gpu"

test-all: lint ## the slow tests too; tests without their GPU or Slurm are skipped
	$(RUN) -m pytest $(PYTEST)

lint: $(VENV)/.dev ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

smoke: $(VENV)/.minimal ## one training step on bundled data
	$(BIN)/python scripts/smoke_upvla_minimal.py --dataset-path ./dummy_data/calvin_processed_training

venv: $(VENV)/.minimal ## the environment of quickstart, smoke and offline evaluation
venv-train: $(VENV)/.train ## the environment of training with DeepSpeed
venv-dev: $(VENV)/.dev ## the environment of the tests

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else \
	    "Python 3.10 to 3.13 is needed, $(PYTHON) is %d.%d; use make PYTHON=python3.12 ..." % v)'
	@test -x $(BIN)/python || { echo "creating $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing $(TORCH) into $(VENV)"
	@$(PIP) install --quiet --no-compile --upgrade pip
	@index=; if ! command -v nvidia-smi >/dev/null && [ "$(origin TORCH)" = file ] && $(BIN)/python -c \
	    'import urllib.request as r; r.urlopen(r.Request("$(CPU_WHEELS)/torch/", method="HEAD"), timeout=5)' 2>/dev/null; \
	    then index="--extra-index-url $(CPU_WHEELS)"; fi; $(PIP) install --quiet --no-compile $(TORCH) $$index
	@touch $@

$(VENV)/.minimal: requirements_minimal.txt | $(VENV)/.torch
	@echo "installing this checkout and its requirements into $(VENV)"
	@$(PIP) install --quiet --no-compile --editable ".[serve]"
	@touch $@

$(VENV)/.train: requirements.txt $(VENV)/.minimal
	@echo "installing the requirements of training into $(VENV)"
	@$(PIP) install --quiet --no-compile --editable ".[serve,train]"
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.train
	@echo "installing the requirements of tests and linters into $(VENV)"
	@$(PIP) install --quiet --no-compile --editable ".[dev]"
	@$(PIP) install --quiet --no-compile --no-deps --group no-deps
	@touch $@

$(VENV)/.docs: pyproject.toml $(VENV)/.minimal
	@echo "installing the requirements of the documentation site into $(VENV)"
	@$(PIP) install --quiet --no-compile --group docs
	@touch $@

docs: $(VENV)/.docs ## the documentation site: outputs/site/index.html; a broken link or name is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "written: outputs/site/index.html"

requirements: $(VENV)/.dev ## write the requirements files from pyproject.toml
	$(BIN)/python scripts/dev/write_requirements.py

clean: ## remove caches (keeps outputs/ and the environment)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## remove caches and the environment
	rm -rf $(VENV)

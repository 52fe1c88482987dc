# make study   set up a virtual environment and run the studies that need no GPU, to the last figure
# make compare what was run here, against what the repository ships
# make test    set up and run everything that CI runs
PYTHON ?= python3
VENV ?= .venv
LOWEST ?= .venv-lowest
JOBS ?= 2
STUDIES ?= gmm gmm16 digits
BIN := $(VENV)/bin
# The notebooks in their order, and how pytest runs them as they stand.
QUICK := $(patsubst %,notebooks/%.ipynb,1_teacher 2_distill 3_ode_error 4_sample_quality 5_figures 6_the_switch 7_when_it_fails)
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=600 -p no:cacheprovider
# Offline unless a parameter asks for a download.
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
# Every notebook is a process that imports torch: seconds more, each time, where Python may not keep what it compiles.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: study switch sdxl-rehearsal regimes-all compare publish test shipped unit smoke faults nbval lowest lint notebooks lab browser site mutants clean

# Figures, tables and pages go to results/local; what lies in results/ besides is the repository's own.
RUN_STUDIES = $(BIN)/python workflow/study.py $(1:%=workflow/config/%.yaml) -j $(JOBS) $(if $(filter-out 0,$(DOWNLOAD)),--download)
COMPARE := $(BIN)/python workflow/compare.py

study: $(BIN)/.ready
	@$(call RUN_STUDIES,$(STUDIES)) --switch
	@$(COMPARE) $(STUDIES:%=workflow/config/%.yaml) results/local/switch

# Notebook 6 over the results of all studies, one's own or the repository's: half a minute.
switch: $(BIN)/.ready
	@$(BIN)/python -m snakemake -s workflow/switch.smk -j 1 --rerun-incomplete --nolock --quiet all
	@$(COMPARE) results/local/switch

# One study by name: make study-gmm, study-digits, study-cifar10, study-sdxl (with DOWNLOAD=1 it fetches what it needs);
# and the regimes of notebook 7: study-regimes, study-regimes_cifar10. What is finished is not run again.
study-%: $(BIN)/.ready
	@$(call RUN_STUDIES,$*)
	@$(COMPARE) workflow/config/$*.yaml

# SDXL's study on random weights of its size, on a GPU, before anything is downloaded: what works, and what it costs.
sdxl-rehearsal: $(BIN)/.ready
	$(BIN)/python benchmarks/sdxl_rehearsal.py $(REHEARSAL)

# Notebook 7 over the results of both regimes: a minute, without students or a GPU.
regimes-all: $(BIN)/.ready
	@$(BIN)/python -m snakemake -s workflow/regimes_all.smk -j 1 --rerun-incomplete --nolock --quiet all
	@$(COMPARE) results/local/regimes_all

# Verdicts and metrics of everything that was run here, against those of the repository.
compare: $(BIN)/.ready
	@$(COMPARE)

# A maintainer's step: what was run here becomes what the repository ships, and the pages that state it are filled anew.
publish: $(BIN)/.ready
	@$(COMPARE) --publish $(or $(STUDY),$(error make publish STUDY=gmm, say))
	$(BIN)/python docs/fill.py

# All of lint, unit, smoke and nbval, the tests in a process more than JOBS, since some wait for processes of their own
# (tests/conftest.py says which stay together).
test: lint
	rm -rf runs/quick
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$(($(JOBS) + 1)) $(NBVAL) tests $(QUICK)

# Those of them that read what the repository ships, which no run may change.
shipped: $(BIN)/.ready
	$(BIN)/python -m pytest tests/report tests/test_docs.py

# uv installs in a fifth of pip's time. Where it cannot be had, or does not find the registry that pip is told of, pip does.
INSTALL := -m pip install --quiet --disable-pip-version-check
$(BIN)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	{ $(BIN)/python $(INSTALL) uv && $(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[test]'; } \
		|| $(BIN)/python $(INSTALL) -e '.[test]'
	touch $@

# The unit tests with the lowest versions that pyproject.toml allows (`make unit` has the highest), in an environment
# of their own: an installation of torch, so minutes and gigabytes.
lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python $(INSTALL) uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct -e '.[test]'
	$(LOWEST)/bin/python -m pytest --ignore tests/workflow/test_smoke.py

lint: $(BIN)/.ready
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: $(BIN)/.ready
	$(BIN)/python -m pytest --ignore tests/workflow/test_smoke.py

# Every notebook through papermill and Snakemake, at a size that takes minutes.
smoke: $(BIN)/.ready
	$(BIN)/python -m pytest tests/workflow/test_smoke.py

# The smoke study killed (SIGKILL) at 20 random moments and resumed: the same metrics.csv. About half an hour.
faults: $(BIN)/.ready
	DCM_KILLS=20 $(BIN)/python -m pytest -s tests/workflow/test_smoke.py -k killed

# The notebooks as they stand, against their stored outputs (cells tagged nbval-check-output).
nbval: $(BIN)/.ready
	rm -rf runs/quick
	$(BIN)/python -m pytest $(NBVAL) $(QUICK)

# Store the notebooks' outputs anew, after a change that is meant to change them. (A backend that is named in the
# environment would keep their figures out; progress is nothing to store.)
notebooks: $(BIN)/.ready
	rm -rf runs/quick
	for n in $(QUICK); do \
		env -u MPLBACKEND DCM_BATCH=silent $(BIN)/jupyter nbconvert --to notebook --execute --inplace $$n || exit 1; \
	done

# Figures appear in the notebook only without a backend named in the environment.
lab: $(BIN)/.ready
	$(BIN)/jupyter lab notebooks

# Notebooks 2 and 4 run from JupyterLab's menu in a real browser (Debian's chromium); leaves docs/jupyterlab.png.
browser: $(BIN)/.ready
	$(BIN)/python $(INSTALL) playwright
	$(BIN)/python tests/browser.py

# README, docs, results and notebooks, as they are stored, as a website in site/html. Its packages are few, so no .ready.
SITE := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["site"], sep="\n")
site:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c '$(SITE)' | $(BIN)/python $(INSTALL) -r /dev/stdin
	$(BIN)/python -m sphinx -q -W --keep-going -b html -c docs . site/html
	@echo "open site/html/index.html"

# Would the tests see a mistake? One at a time is made in a copy of the core; an hour, and docs/mutants.md anew.
mutants: $(BIN)/.ready
	$(BIN)/python tests/mutants.py

# All that was run here, trained teachers and students too.
clean:
	rm -rf runs results/local site .snakemake

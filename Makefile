# make study   set up a virtual environment and run the studies that need no GPU, to the last figure
# make test    set up and run everything that CI runs
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
STUDIES ?= gmm digits
BIN := $(VENV)/bin
# Headless, and offline unless a parameter asks for a download.
export MPLBACKEND ?= agg
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1

.PHONY: study test unit smoke nbval lint notebooks lab clean

study: $(BIN)/.ready
	@for study in $(STUDIES); do $(MAKE) --no-print-directory study-$$study || exit 1; done

# One study by name: make study-gmm, study-digits, study-cifar10, study-sdxl.
# (Without Snakemake's lock, which a killed run would leave behind: files are written whole or not at all.)
study-%: $(BIN)/.ready
	$(BIN)/snakemake -s workflow/Snakefile --configfile workflow/config/$*.yaml -j $(JOBS) --rerun-incomplete --nolock

test: lint unit smoke nbval

$(BIN)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

lint: $(BIN)/.ready
	$(BIN)/ruff check .

unit: $(BIN)/.ready
	$(BIN)/python -m pytest --ignore tests/test_smoke.py

# Every notebook through papermill and Snakemake, at a size that takes minutes.
smoke: $(BIN)/.ready
	$(BIN)/python -m pytest tests/test_smoke.py

# The notebooks as they stand, against their stored outputs (cells tagged nbval-check-output).
nbval: $(BIN)/.ready
	rm -rf runs/quick
	$(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=600 -p no:cacheprovider notebooks/1_teacher.ipynb notebooks/2_distill.ipynb notebooks/3_ode_error.ipynb notebooks/4_sample_quality.ipynb notebooks/5_figures.ipynb

# Store the notebooks' outputs anew, after a change that is meant to change them.
notebooks: $(BIN)/.ready
	rm -rf runs/quick
	for n in 1_teacher 2_distill 3_ode_error 4_sample_quality 5_figures; do $(BIN)/jupyter nbconvert --to notebook --execute --inplace notebooks/$$n.ipynb || exit 1; done

lab: $(BIN)/.ready
	$(BIN)/jupyter lab notebooks

clean:
	rm -rf runs .snakemake

# Two commands: `make book` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
HTML := _build/html
# A profile of our own: the reader's IPython settings stay out of the book.
KERNEL := $(CURDIR)/_build/ipython
PORT ?= 8000
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help book test serve lint format check-site notebooks picture tables constraints set-repository smollm2 gpu clean

help:  ## List the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24

book: $(STAMP)  ## Execute every notebook and write the site to _build/html
	rm -rf $(HTML)
	mkdir -p $(KERNEL)/profile_default
	echo 'c.IPKernelApp.log_level = 40  # kernels say on every start that their local sockets are plain' \
	  > $(KERNEL)/profile_default/ipython_kernel_config.py
	IPYTHONDIR=$(KERNEL) $(BIN)/jupyter-book build . --all -W -n --keep-going
	@echo "The book is in $(CURDIR)/$(HTML)/index.html; 'make serve' shows it."

test: $(STAMP)  ## Run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

notebooks: $(STAMP)  ## Run the notebooks from the built wheel: as on Colab, and with the newest versions
	$(BIN)/python scripts/site/run_notebooks.py

serve:  ## Show the built site on http://localhost:8000 (PORT=... for another)
	$(PYTHON) -m http.server $(PORT) --bind 127.0.0.1 --directory $(HTML)

lint: $(STAMP)  ## Check code, spelling and notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python scripts/site/check_notebooks.py

format: $(STAMP)  ## Mend what lint can mend by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/nbstripout $(wildcard notebooks/*.ipynb)

check-site: $(STAMP)  ## Check the built site, in headless Chromium too where there is one
	$(BIN)/python scripts/site/check_site.py $(if $(REQUIRE_ALL),--require-browser)

tables: $(STAMP)  ## Write every summary of the recorded runs again, from results/
	$(BIN)/python -m spectr_lite reproduce summarise

picture: $(STAMP)  ## The README's picture, from the screenshots of check-site
	$(BIN)/python scripts/site/readme_picture.py

constraints: $(STAMP)  ## Write the versions now installed to constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' > constraints.txt

set-repository: $(STAMP)  ## Rewrite the repository's address everywhere: make set-repository URL=https://...
	$(BIN)/python scripts/site/set_repository.py "$(URL)"

smollm2: $(STAMP)  ## Fetch SmolLM2-135M (98 MB) into data/smollm2 and convert it (540 MB)
	$(BIN)/python -m training.fetch_smollm2

gpu: $(STAMP)  ## On a machine with a GPU: checks, then every measurement, in half an hour
	PYTHON=$(BIN)/python runs/gpu.sh

clean:  ## Remove what was built (the environment stays)
	rm -rf _build

# Installed again only when one of these three files changes.
$(STAMP): requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit(f"Python 3.11 to 3.13 is needed and {sys.executable} is {v[0]}.{v[1]}: try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --requirement requirements.txt --editable .
	touch $(STAMP)

PYTHON ?= python3
VENV = .venv
RUN = runs/quickstart
# processes that run tests; each takes about a core and 2 GiB
JOBS = 2

.PHONY: quickstart test test-slow test-faults test-mutants fuzz parity lint docs

quickstart: $(VENV)/installed
	$(VENV)/bin/python main.py --config=configs/quickstart.py --workdir=$(RUN)
	@echo "report: $(RUN)/report.html"

test: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile

# what takes too long for each time: the larger backbones against the golden values, four processes
test-slow: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest -m slow

# disturbs training runs 500 times; each must end bit-identical to one that nobody disturbed
test-faults: $(VENV)/installed-test
	$(VENV)/bin/python tests/faults.py --disturbances 500 --seed 0

# puts faults into a copy of the tree, one at a time, and prints those that no test notices
test-mutants: $(VENV)/installed-test
	$(VENV)/bin/python tests/mutants.py --jobs $(JOBS)

# feeds damaged and hostile files to each reader, for MINUTES each
MINUTES = 10
fuzz: $(VENV)/installed-test
	$(VENV)/bin/python tests/fuzz.py --minutes $(MINUTES) --reader all --seed 0

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

# the pages of docs/ and the API as a site in .site/; a link that leads nowhere is an error
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

# torch, torchvision and timm in an environment of their own: remakes the golden values and compares
parity: $(VENV)/installed-test .venv-parity/installed
	$(VENV)/bin/python tests/parity/check.py .venv-parity/bin/python

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/installed-test: $(wildcard requirements*.txt)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -r requirements-test.txt
	@touch $@ $(VENV)/installed

$(VENV)/installed-docs: requirements-docs.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -r requirements-docs.txt
	@touch $@

.venv-parity/installed: requirements-parity.txt
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet -r requirements-parity.txt
	@touch $@

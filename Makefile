# make edit   train the flower's source field if needed, then edit it: python edit.py --tgt "a red flower"
# make test   run the tests, in up to four processes
# make docs   the documentation as pages, in site/
# make lint   format, style, and known flaws of the packages that are installed; AUDIT=no leaves out the flaws
# make audit  the flaws alone, which takes a network
# make test-cuda   on a machine with a GPU: the tests that need one, then times, memory and agreement with the CPU
# make test-browser   the viewer in Chromium, which has to be there: apt-get install chromium
# All of them set up .venv first if it is not there. PYTHON=python3.12 make ... picks another interpreter.

PYTHON ?= python3

.PHONY: edit test test-cuda test-browser docs lint audit

edit: .venv/ready
	.venv/bin/python edit.py --tgt "a red flower"

test: .venv/ready
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder tests

test-cuda: .venv/ready
	.venv/bin/python -m pytest -q -rs tests/cds3d/commands/test_cuda.py
	.venv/bin/python scripts/gpu_check.py

test-browser: .venv/ready
	.venv/bin/python -m pip install -q playwright==1.65.2
	.venv/bin/python -m pytest -q -rs tests/cds3d/test_browser.py

docs: .venv/ready
	.venv/bin/python -m pip install -q "mkdocs>=1.6,<2" "mkdocs-material>=9.5" "mkdocstrings[python]>=0.26"
	.venv/bin/python -m mkdocs build --strict

lint: .venv/ready
	.venv/bin/python -m pip install -q ruff==0.17.6
	.venv/bin/ruff format --check . && .venv/bin/ruff check .
	@if [ "$(AUDIT)" = no ]; then echo "AUDIT=no: packages are not looked up"; else $(MAKE) audit; fi

# In an environment of its own, because it brings many packages. "+cpu" and the like are builds that have no entry.
audit: .venv/ready
	.venv/bin/python -m venv .venv/tools
	.venv/tools/bin/python -m pip install -q pip-audit==2.10.1
	.venv/bin/python -m pip list --format=freeze --exclude-editable --exclude pip | sed 's/+.*//' > .venv/installed.txt
	test -s .venv/installed.txt
	@.venv/tools/bin/pip-audit --strict --no-deps --disable-pip -r .venv/installed.txt || \
	  { echo "error: a package above has a known flaw, or pypi.org could not be asked, as it is with mirrors and"; \
	    echo "without a network: AUDIT=no make lint leaves this out"; exit 1; }

.venv/ready: requirements.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
	  { echo "error: cds3d needs Python 3.10 or later: PYTHON=python3.12 make ... picks another one"; exit 1; }
	@$(PYTHON) -c "import venv, ensurepip" 2>/dev/null || \
	  { echo "error: $(PYTHON) lacks venv: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q --upgrade-strategy only-if-needed -r requirements.txt
	.venv/bin/python -m pip install -q --no-deps -e .
	touch $@

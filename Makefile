# Everything happens in .venv; `make demo` and `make test` need Python >= 3.10 and nothing else.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# pytest-xdist workers: one a core, one torch thread each
WORKERS ?= auto

.PHONY: demo test lint typecheck typing-tree docs check clean

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

.venv/installed-lint: .venv/installed-test
	$(PIP) install --quiet --constraint constraints.txt --editable '.[test,lint]'
	touch $@

demo: .venv/installed
	$(BIN)/dmq plan dmq/w4a8
	$(BIN)/dmq compile dmq/w4a8 --set budget=quick -o demo/w4a8 --force
	$(BIN)/dmq inspect demo/w4a8 --site 'up_blocks.*.conv_shortcut.*'
	$(BIN)/dmq sample demo/w4a8 -n 36 -o demo/grid.png --compare
	@echo "Look at demo/grid.png (full precision and dmq/w4a8, same noise), then try: dmq inspect demo/w4a8"

test: .venv/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations 15

lint: .venv/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The folders of the house as the one package that they are installed as, for the type checker; a link for each file, as
# it does not follow linked folders.
typing-tree:
	rm -rf build/typing && mkdir -p build/typing
	cp -rs $(CURDIR)/dmq_fx build/typing/
	for part in passes backends cli recipes assets ; do cp -rs $(CURDIR)/$$part build/typing/dmq_fx/ ; done

typecheck: .venv/installed-lint typing-tree
	$(BIN)/pyright

# Files that are generated from the code: the recipe schema and the language reference.
docs: .venv/installed
	$(BIN)/python -m dmq_fx.recipe.docs

check: lint typecheck test

clean:
	rm -rf .venv build dist demo *.egg-info

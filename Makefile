# The whole chain and each of its stages. `make help` lists the targets.

VENV ?= .venv
PYTHON ?= python3
MODEL ?= lenet
PRECISION ?= fp32
ENGINE ?= all
# How long `make fuzz` runs, and the seed of its mutations.
SECONDS ?= 600
SEED ?= 0
# How often `make interruptions` interrupts each stage, and how full it makes each disk.
MOMENTS ?= 60
LEVELS ?= 20
# More options for the command behind a target, as in: make train ARGS="--epochs 2"
ARGS ?=

EXTRAS := train,onnxruntime,openvino,tensorrt-rtx,report,loadgen,triton,watch,sign,oci,card,mlflow,dev
# Named by a digest of its prerequisites, since file times in a fresh clone mean nothing.
STAMP := $(VENV)/.assay-$(shell cat pyproject.toml constraints.txt Makefile | sha256sum | cut -c1-12)
# Each server has an environment of its own, since they pin other versions of what assay uses.
SERVERS := $(VENV)-servers
SERVERS_STAMP := $(SERVERS)/.assay-$(shell cat Makefile | sha256sum | cut -c1-12)
# The headers that the C++ example is compiled with.
HEADERS := $(VENV)-headers
HEADERS_STAMP := $(HEADERS)/.assay-$(shell cat Makefile | sha256sum | cut -c1-12)
# Runs this checkout even if VENV was set up from another one.
RUN := PYTHONPATH="$(CURDIR)" $(VENV)/bin/python
ASSAY := $(RUN) -m pipeline.cli
# Distributed by file, since the tests of a file share fixtures; in the order of tests/conftest.py.
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup pipeline data train export verify build bench bundle load profile sweep report summary doctor test test-fast test-large test-long test-report test-engines test-gpu triton-test cpp-test fuzz interruptions gpu-report lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  MODEL=$(MODEL) PRECISION=$(PRECISION) ENGINE=$(ENGINE) VENV=$(VENV) ARGS='more options'"

setup: $(STAMP) ## make the environment in VENV

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; give PYTHON=python3.11 or later" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@rm -f $(VENV)/.assay-*
	@touch $@

pipeline: $(STAMP) ## run the whole chain for MODEL and print the results
	$(ASSAY) run $(MODEL) --precision $(PRECISION) --engine $(ENGINE) $(ARGS)

data: $(STAMP) ## get the data set
	$(ASSAY) data $(ARGS)

train: $(STAMP) ## train MODEL
	$(ASSAY) train $(MODEL) $(ARGS)

export: $(STAMP) ## export MODEL to ONNX in PRECISION
	$(ASSAY) export $(MODEL) --precision $(PRECISION) $(ARGS)

verify: $(STAMP) ## verify that the built engines equal PyTorch
	$(ASSAY) verify $(MODEL) --precision $(PRECISION) --engine $(ENGINE) $(ARGS)

build: $(STAMP) ## build ENGINE, or all that this machine can build
	$(ASSAY) build $(MODEL) --precision $(PRECISION) --engine $(ENGINE) $(ARGS)

bench: $(STAMP) ## measure the built engines side by side
	$(ASSAY) bench $(MODEL) --precision $(PRECISION) --engine $(ENGINE) $(ARGS)

profile: $(STAMP) ## what the built engines cost, and how near they come to the machine
	$(ASSAY) profile $(MODEL) --precision $(PRECISION) --engine $(ENGINE) $(ARGS)

bundle: $(STAMP) ## write one archive with everything to dist/
	$(ASSAY) bundle $(MODEL) --precision $(PRECISION) --engine $(ENGINE) $(ARGS)

load: $(STAMP) ## measure several clients at once, and the largest rate that the engines bear
	$(ASSAY) load $(MODEL) --precision $(PRECISION) --engine $(ENGINE) $(ARGS)

sweep: $(STAMP) ## race every way to run the model in PRECISION
	$(ASSAY) sweep $(MODEL) --precision $(PRECISION) --engine $(ENGINE) $(ARGS)

report: $(STAMP) ## print the results of MODEL
	$(ASSAY) report $(MODEL) --precision $(PRECISION) $(ARGS)

summary: $(STAMP) ## print MODEL layer by layer
	$(ASSAY) summary $(MODEL) $(ARGS)

doctor: $(STAMP) ## show what this machine has and lacks
	$(ASSAY) doctor $(ARGS)

test: $(STAMP) ## run all tests that need no GPU and no long run
	$(RUN) -m pytest $(PARALLEL) $(ARGS)

test-fast: $(STAMP) ## run the tests that take under a second each
	$(RUN) -m pytest $(PARALLEL) -m 'not large and not long and not gpu and not browser and not triton and not cpp and not slow' $(ARGS)

test-large: $(STAMP) ## run the tests that take 16 GiB of memory
	$(RUN) -m pytest -m large $(ARGS)

test-long: $(STAMP) ## run the tests that take minutes
	$(RUN) -m pytest -m long $(ARGS)

test-report: $(STAMP) ## check the HTML report in Chromium, which has to be installed
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e '.[browser]'
	$(RUN) -m pytest -rs -m browser tests/pipeline/report/page $(ARGS)

test-engines: $(STAMP) ## run the tests of engines, with the long ones and engines that compile
	ASSAY_TEST_COMPILERS=1 $(RUN) -m pytest -m 'not large and not gpu' tests/engines $(ARGS)

test-gpu: ## run the tests that need an NVIDIA GPU
	PYTHONPATH="$(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))" $(or $(wildcard $(VENV)/bin/python),$(PYTHON)) -m pytest -m gpu tests/gpu $(ARGS)

triton-test: $(STAMP) $(SERVERS_STAMP) ## prove real servers over the wire: Triton and MLServer
	ASSAY_TRITON_VENV="$(abspath $(SERVERS)/triton)" ASSAY_MLSERVER_VENV="$(abspath $(SERVERS)/mlserver)" $(RUN) -m pytest -m triton tests/pipeline/serving $(ARGS)

# The Python-based backend of the Triton server is built for 3.11. Old releases have known
# vulnerabilities: the server listens on 127.0.0.1 only, for the tests. -I: what PYTHONPATH has is not
# installed.
$(SERVERS_STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "error: the tests' Triton server needs Python 3.11; give PYTHON=python3.11" >&2; exit 1; }
	rm -rf $(SERVERS)
	$(PYTHON) -m venv $(SERVERS)/triton
	$(SERVERS)/triton/bin/python -I -m pip install --quiet --no-deps nvidia-pytriton==0.7.0 'numpy==1.26.4' 'onnxruntime==1.32.0' 'flatbuffers==25.12.19' 'protobuf==7.36.2' 'packaging==26.4'
	$(PYTHON) -m venv $(SERVERS)/mlserver
	$(SERVERS)/mlserver/bin/python -I -m pip install --quiet mlserver==1.7.1 'onnxruntime==1.32.0'
	@touch $@

cpp-test: $(STAMP) $(HEADERS_STAMP) ## compile the C++ example and run it (Linux with npm and apt)
	ASSAY_HEADERS="$(abspath $(HEADERS))" $(RUN) -m pytest -m cpp tests/test_examples.py $(ARGS)

# ONNX Runtime's wheels have the library but no headers; of all packages of npm, this one has them,
# as they are in the release's archive.
$(HEADERS_STAMP):
	rm -rf $(HEADERS)
	mkdir -p $(HEADERS)/include
	cd $(HEADERS) && npm pack --silent com.github.asus4.onnxruntime@0.4.9
	cd $(HEADERS) && tar -xzf *.tgz --strip-components=7 -C include --wildcards '*/ios-arm64/*/Headers/*.h'
	cd $(HEADERS) && apt-get download --quiet nlohmann-json3-dev libstb-dev
	cd $(HEADERS) && for package in *.deb; do dpkg -x $$package debian; done
	rm $(HEADERS)/*.tgz $(HEADERS)/*.deb
	@touch $@

fuzz: $(STAMP) ## mutate files for every reader, for SECONDS with seed SEED
	$(RUN) -m tests.attacks.fuzz --seconds $(SECONDS) --seed $(SEED) $(ARGS)

interruptions: $(STAMP) ## interrupt stages at MOMENTS moments each, and fill disks to LEVELS levels
	$(RUN) -m tests.attacks.interruptions --moments $(MOMENTS) --levels $(LEVELS) --seed $(SEED) $(ARGS)

gpu-report: ## measure LeNet, ResNet18 and VGG-11 on this machine's GPU with every engine it has
	PYTHONPATH="$(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))" $(or $(wildcard $(VENV)/bin/python),$(PYTHON)) benchmarks/gpu_report.py $(ARGS)

lint: $(STAMP) ## check style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean: ## remove artifacts, bundles and caches (not VENV)
	rm -rf artifacts dist build .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

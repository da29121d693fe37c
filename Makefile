# Two commands are enough: `make density` does the main job, `make test` proves the tree. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv/bin
REQUIRE ?= root,libvirt
# In a process of its own: one process can open libvirt's embedded driver only so often ("Too many drivers").
PROFILES := tests/integration/test_vm_profiles.py
RIG_DRIVERS ?= process,container,vm:stock,vm:lean,vm:micro,vm:clone

.PHONY: bench-analysis bench-sampling help setup density test test-full test-rig unit integration lint images bench-cli bench-runtime bench-runtime-scale bench-vm kernel lock clean

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

setup: ## install what is missing: system packages (apt, as root) and .venv with pinned versions
	@tools/setup.sh

images: setup ## build the default image and fetch the guest kernel into the cache
	@$(VENV)/bench image build

density: images ## THE MAIN JOB: run the density scenario, write reports/<run-id>.html, print its path and the summary
	@set -o pipefail; $(VENV)/bench run density | tee .density.out || { code=$$?; rm -f .density.out; exit $$code; }
	@run=$$(tail -n 1 .density.out); rm -f .density.out; echo "report: $$($(VENV)/bench report $$run)"

setup-test:
	@tools/setup.sh --test

lint: setup ## style, types, import rules
	$(VENV)/ruff check .
	$(VENV)/mypy
	$(VENV)/lint-imports

unit: setup ## tests without root, KVM and network, under 30 s
	$(VENV)/pytest tests/unit -n 2 --dist loadfile

integration: setup-test ## real containers and real guests; what is missing skips, or fails with REQUIRE=root,libvirt
	@$(VENV)/bench image build
	@$(VENV)/bench kernel build
	$(VENV)/pytest tests/integration -m "not slow" --require=$(REQUIRE) --ignore=$(PROFILES)
	$(VENV)/pytest $(PROFILES) -m "not slow" --require=$(REQUIRE)

test: setup-test lint unit integration ## set-up, lint, types, import rules, unit and integration tests

test-full: setup-test lint unit ## `make test` and the slow ones
	@$(VENV)/bench image build
	@$(VENV)/bench kernel build
	$(VENV)/pytest tests/integration --require=$(REQUIRE) --ignore=$(PROFILES)
	$(VENV)/pytest $(PROFILES) --require=$(REQUIRE)

test-rig: ## kvm guests and pure cgroup v2, proved in a guest inside this host (as root; see docs/testing.md)
	@tools/setup.sh --rig
	@tools/setup.sh --kernel
	@$(VENV)/bench image build
	@$(VENV)/bench kernel build
	@$(VENV)/python -m tools.rig --drivers $(RIG_DRIVERS)

bench-runtime: ## bounds: a container launch beside its floor in C, bwrap, crun, runc, lxc and docker (as root)
	@tools/setup.sh --benchmarks
	@$(VENV)/python -m benchmarks.runtime

bench-runtime-scale: setup ## bounds: 10,000 containers beside 10,000 of the floor in C (as root; about half an hour, 24 GiB)
	@$(VENV)/python -m benchmarks.scale

kernel: ## build the small kernel of vm:micro and vm:clone (some minutes, once)
	@tools/setup.sh --kernel
	@$(VENV)/bench kernel build

bench-vm: kernel ## bounds: the VM profiles' start-up and memory, beside QEMU by hand and each other (as root)
	@$(VENV)/bench image build
	@$(VENV)/python -m benchmarks.vm

bench-analysis: setup ## bounds: show, report and their page on a run with 1,000,000 readings
	@$(VENV)/python -m benchmarks.analysis

bench-sampling: setup ## bound: a full sample at 1,000 instances takes at most 3 s (as root)
	@$(VENV)/bench image build
	@$(VENV)/python -m benchmarks.sampling

bench-cli: setup ## bound: `bench --help` costs at most 5 x an empty Python
	@$(VENV)/python -m benchmarks.cli

lock: ## write requirements.lock anew from pyproject.toml, without index addresses (needs pip-tools on PATH)
	@python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["dev"], sep="\n")' > .dev.in
	pip-compile -q --extra vm --generate-hashes --allow-unsafe --strip-extras --no-header --no-annotate \
	    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host -o requirements.lock pyproject.toml .dev.in; rm .dev.in

clean: ## remove what dead runs left on this host
	@$(VENV)/bench clean

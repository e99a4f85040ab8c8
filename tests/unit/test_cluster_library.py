"""The client library of NATS is optional."""

import subprocess
import sys
from dataclasses import replace

import pytest

from correlator.cluster.connection import Connection
from correlator.errors import ConfigError
from tests.support.cluster import settings

IMPORTS = """
import importlib, pkgutil, sys
import correlator.app, correlator.cli, correlator.sinks.otlp.sink
print([name for name in ("nats", "correlator.ops.cluster_metrics", "google.protobuf") if name in sys.modules])
sys.modules["nats"] = sys.modules["nkeys"] = None
for module in pkgutil.walk_packages(correlator.__path__, "correlator."):
    if module.name != "correlator.__main__":
        importlib.import_module(module.name)
"""


def test_a_daemon_without_a_cluster_loads_nothing_of_it_and_no_module_needs_the_library():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


async def test_a_cluster_without_the_library_is_a_problem_of_the_settings(monkeypatch):
    monkeypatch.setitem(sys.modules, "nats", None)
    monkeypatch.setitem(sys.modules, "nats.aio.client", None)
    with pytest.raises(ConfigError, match="needs the Python package nats-py"):
        Connection(settings("nats://127.0.0.1:4222"), "collector")


async def test_without_the_package_of_signatures_a_certificate_is_the_way(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nkeys", None)
    Connection(settings("nats://127.0.0.1:4222"), "collector")
    with pytest.raises(ConfigError, match=r"needs the Python package nkeys\. A certificate"):
        Connection(replace(settings("nats://127.0.0.1:4222"), credentials_file=tmp_path / "x"), "collector")

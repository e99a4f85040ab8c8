"""The client library of NATS is optional, and has what the connection relies on."""

import inspect
import subprocess
import sys
from dataclasses import replace

import pytest

from correlator.cluster.connection import Connection
from correlator.errors import ConfigError
from tests.support.cluster import settings

EVERY_MODULE = """
import importlib, pkgutil, sys
sys.modules["nats"] = sys.modules["nkeys"] = None
import correlator
for module in pkgutil.walk_packages(correlator.__path__, "correlator."):
    if module.name != "correlator.__main__":
        importlib.import_module(module.name)
"""


def test_every_module_can_be_imported_without_the_library():
    done = subprocess.run([sys.executable, "-c", EVERY_MODULE], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


NOT_LOADED = """
import sys
import correlator.app, correlator.cli, correlator.sinks.otlp.sink
print([name for name in ("nats", "correlator.ops.cluster_metrics", "google.protobuf") if name in sys.modules])
"""


def test_a_daemon_without_a_cluster_and_protobuf_loads_nothing_of_them():
    done = subprocess.run([sys.executable, "-c", NOT_LOADED], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


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


def test_the_client_of_the_library_has_what_the_connection_uses():
    from nats.aio.client import Client

    asked = {"pending_size", "inbox_prefix", "ping_interval", "max_outstanding_pings", "nkeys_seed", "user_credentials"}
    assert asked <= set(inspect.signature(Client.connect).parameters)
    assert {"pending_data_size", "is_connected", "is_closed", "connected_server_version"} <= set(dir(Client))

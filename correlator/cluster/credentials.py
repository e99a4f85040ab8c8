"""How this process proves its identity to NATS: the options for the client library that follow from [cluster]."""

from __future__ import annotations

import ssl
from typing import Any

from correlator.config.cluster import Cluster
from correlator.config.cluster_values import is_seed
from correlator.config.tls import client_context
from correlator.errors import ConfigError


def login_options(settings: Cluster) -> dict[str, Any]:
    """Return the options for credentials and TLS.

    Raises: `ConfigError` if the client library is missing or a file of the settings cannot be used.
    """
    assert settings.url is not None
    options = _credentials(settings)
    if settings.url.tls:
        try:
            options["tls"] = client_context(settings.tls)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError([f"cluster.tls: the files cannot be used: {error}"]) from None
    return options


def _credentials(settings: Cluster) -> dict[str, Any]:
    try:
        import nats.aio.client  # noqa: F401, PLC0415 - only a process with [cluster] needs the library
    except ImportError as error:
        text = f"cluster.url: needs the Python package nats-py (the extra cluster): {error}"
        raise ConfigError([text]) from None
    file = settings.credentials_file
    if file is None:
        return {}
    try:
        import nkeys  # noqa: F401, PLC0415 - certificates need no signatures of this program
    except ImportError:
        text = "cluster.credentials_file: needs the Python package nkeys. A certificate (cluster.tls) needs none"
        raise ConfigError([text]) from None
    return {"nkeys_seed": str(file)} if is_seed(file) else {"user_credentials": str(file)}

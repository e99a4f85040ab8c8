"""What `token` does: it signs a token for one job with the key of the configuration."""

from __future__ import annotations

import time

import click

from correlator.config import values
from correlator.config.schema import Http
from correlator.errors import ConfigError
from correlator.model import job_token


def create(settings: Http, job: str, vm: str, valid_for: str, instance: str) -> str:
    """Return a token. `valid_for`: a duration with its unit. `instance`: the only appliance; empty: any.

    Raises: `ConfigError` without a key, `click.UsageError` if no token can be made of what is given.
    """
    keys = settings.job_token_keys()
    if not keys:
        make = "openssl rand -base64 48 | install --mode=600 /dev/stdin /etc/correlator/job-token-key"
        raise ConfigError([f"http.job_token_key_file is empty: make a key ({make}), and restart the service"])
    try:
        seconds = values.seconds(valid_for)
    except ValueError as error:
        raise click.UsageError(f"--for {valid_for}: expected {error}") from error
    if seconds > settings.job_token_max:
        most = values.duration(settings.job_token_max).strip('"')
        raise click.UsageError(f"--for {valid_for}: a token is valid for at most {most} (http.job_token_max)")
    try:
        return job_token.create(keys[0], now=time.time(), job=job, vm=vm, valid_for=seconds, instance=instance)
    except ValueError as error:
        raise click.UsageError(f"--job, --vm: {error}") from error

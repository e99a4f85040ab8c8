"""Correlator: follows a migration appliance's job log and serves the progress of each job to any client."""

__version__ = "0.1.0+dev"  # a build writes its own here: deploy/version.py

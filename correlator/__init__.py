"""Correlator: follows a migration appliance's job log and tells everybody who asks how far each job is."""

__version__ = "0.1.0"

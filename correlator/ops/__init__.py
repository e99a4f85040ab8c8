"""Observability of the process: metrics, log lines, event loop stalls, heartbeats, systemd notifications."""

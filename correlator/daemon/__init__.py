"""The running process: supervision of its tasks for systemd, and reload of the configuration."""

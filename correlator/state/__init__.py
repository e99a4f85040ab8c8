"""What survives a restart: the checkpoint, in a file and, in a cluster, in NATS."""

"""What a collector writes to the cluster: documents, events, log lines, and its own state; its replies to gateways."""

"""The pipeline (the only writer of the index), the hub that publishes its changes, and the checkpoint."""

"""Fan-out, snapshots and backlogs of the streaming connections. Used by the websocket and by server-sent events."""

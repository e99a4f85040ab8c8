"""Webhooks: events are sent to HTTP receivers, signed, in order per job, and at least once."""

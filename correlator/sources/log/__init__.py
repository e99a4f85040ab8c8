"""The tail of log_events: rows in commit order, gaps, the past, and resets of the ids."""

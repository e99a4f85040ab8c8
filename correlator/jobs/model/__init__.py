"""The values of the core, in the order of the dataflow: rows, facts, views, changes; and what a checkpoint persists.

All are frozen. Times are integers, microseconds since 1970 in UTC. Durations are seconds. ``None`` means "not known".
"""

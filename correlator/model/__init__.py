"""The values that everything speaks of: rows, the facts that they state, jobs as they are published, and what survives.

`rows`, `facts` and `published` are the core's, in the order of the dataflow; `persisted` is what a checkpoint stores of
them. `document`, `messages`, `replies` and `parameters` are the only public shapes.

All are frozen. In those of the core times are integers, microseconds since 1970 in UTC, durations are seconds, and
None means "not known".
"""

"""The pure core: what JobLog's rows mean, and what is known of every job.

Nothing in here waits, reads a clock, opens a file or a socket, or logs: rows and the time are arguments,
changes are return values. That is what lets the tests shuffle, repeat and split the facts of a recording.
"""

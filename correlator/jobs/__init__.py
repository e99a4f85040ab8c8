"""The pure core: the meaning of JobLog's rows, and the state of every job.

The package does no I/O: it does not wait, read a clock, open a file or a socket, or log. Rows and the time are
arguments, changes are return values. Tests can therefore shuffle, repeat and split the facts of a recording.
"""

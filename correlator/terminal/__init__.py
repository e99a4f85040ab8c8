"""Jobs on a terminal, in a pipe, or as JSON: what the commands jobs, show and watch print.

Always: text that comes from the daemon is somebody else's. Control characters leave escaped, and no markup of rich is
ever read out of it.
"""

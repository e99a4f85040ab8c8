"""What the commands jobs, show and watch print: to a terminal, to a pipe, or as JSON.

Invariant: text from the daemon is untrusted. Control characters are printed escaped, and no text is parsed as rich
markup.
"""

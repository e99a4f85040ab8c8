"""Why a job failed, according to its rows: the step, the text, and a fingerprint of the text.

Pure: no clock, file, loop or log. A failure is a function of one job's rows, so it is the same after a restart, on
every appliance and at every gateway. Two different failures must never share a fingerprint; one failure may have two.
"""

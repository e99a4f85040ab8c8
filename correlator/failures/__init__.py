"""Why a job failed, as its rows say it: the step and the text, a fingerprint of the text, and groups of equal ones.

Pure: no clock, file, loop or log. A failure is a function of one job's rows, so that it is the same after a restart, on
every appliance and at every gateway. Two different failures must never have one fingerprint; one failure may have two.
"""

"""The examination of an installation: the commands `correlator doctor` and `correlator support-bundle`.

Problem: an installation fails for reasons outside the daemon (a grant, an ACL, a time zone, a full disk), and the
operator needs the command that fixes it.
Model: each module examines one thing and returns `Check` values. Functions that do I/O collect facts; pure functions
named `judge_*` turn facts into a check. `examination` runs all checks in order; `check.copyable` makes each fix a
shell command.
Invariants: a check uses the daemon's own configuration, credentials and drivers. Nothing is changed; the only write is
one MQTT message that is not retained. Every check has a deadline, so that a server that hangs is a failed check.
"""

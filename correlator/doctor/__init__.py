"""The examination of an installation: what `correlator doctor` and `correlator support-bundle` do.

Everything is looked at as the daemon would, with its configuration, its credentials and its drivers, and nothing is
changed: but for one message to the broker that nobody keeps, all of it is reading. Every look has a deadline, so that
a server that is frozen ends as a failed check. Each file looks at one thing and returns checks; `examination` is their
order.
"""

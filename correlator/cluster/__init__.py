"""What every role of a cluster shares: the connection to NATS, subjects, streams, fenced writes, lease and requests.

Nothing outside of a cluster imports this package, and only `connection` imports the client library of NATS.
"""

"""What every role of a cluster shares: subjects, the connection to NATS, streams, and fenced atomic batches.

Nothing outside of a cluster imports this package, and only `connection` imports the client library of NATS.
"""

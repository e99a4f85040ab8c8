"""The doorbell: a wake-up by the binary log of MariaDB.

The follower runs `Doorbell` with one callback, which gets the numbers of statements by table. The tail knows
`DoorbellRetry` alone: when to read again because of them.
"""

-- The correlator's account at the appliance's MariaDB: SELECT on four tables, nothing else.
-- Before running it (as an administrator), put in the host that the correlator connects from and a password of its own:
--     mariadb < grants.sql
-- A table that this appliance does not have makes its GRANT fail; leave that line out. The correlator names in its log
-- what is missing, and works with the rest: only log_events is indispensable.

CREATE USER IF NOT EXISTS 'correlator'@'127.0.0.1' IDENTIFIED BY 'change-me';
-- From another host, and only over TLS (in the correlator's configuration: [database.tls] with ca = "…"):
-- CREATE USER IF NOT EXISTS 'correlator'@'correlator.example' IDENTIFIED BY 'change-me' REQUIRE SSL;

GRANT SELECT ON migratekit_oma.log_events    TO 'correlator'@'127.0.0.1';
GRANT SELECT ON migratekit_oma.job_tracking  TO 'correlator'@'127.0.0.1';
GRANT SELECT ON migratekit_oma.job_steps     TO 'correlator'@'127.0.0.1';
GRANT SELECT ON migratekit_oma.failover_jobs TO 'correlator'@'127.0.0.1';

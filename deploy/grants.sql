-- The correlator's account at the appliance's MariaDB: SELECT on four tables, nothing else.
-- Put in the host that the correlator connects from and a password of its own; then, as an administrator:
--     mariadb < grants.sql
-- It may be run again: the account then has the password that is written here, and keeps what else it was granted. A table
-- that this appliance does not have makes its GRANT fail; leave that line out. The correlator names in its log what is
-- missing, and works with the rest: only log_events is indispensable.

-- CREATE USER changes nothing about an account that exists, ALTER USER does. The account keeps five or six connections, and has
-- up to nine for a while. 16 leave room for those that a broken network has not given back yet, and leave the appliance its own,
-- whatever happens here.
CREATE USER IF NOT EXISTS 'correlator'@'127.0.0.1' IDENTIFIED BY 'change-me';
ALTER USER 'correlator'@'127.0.0.1' IDENTIFIED BY 'change-me' WITH MAX_USER_CONNECTIONS 16;

-- In place of that account, with its host in the grants below as well:
-- from another host, and only over TLS (in the correlator's configuration: [database.tls] with ca = "…"):
-- CREATE USER IF NOT EXISTS 'correlator'@'correlator.example' IDENTIFIED BY 'change-me' REQUIRE SSL;
-- ALTER USER 'correlator'@'correlator.example' IDENTIFIED BY 'change-me' REQUIRE SSL WITH MAX_USER_CONNECTIONS 16;
-- or on the same host without any password, as MariaDB sees by the socket which user the service runs as (in the configuration:
-- unix_socket = "/run/mysqld/mysqld.sock"; on the host: libnss-systemd, which knows the users that services bring along):
-- CREATE USER IF NOT EXISTS 'correlator'@'localhost' IDENTIFIED VIA unix_socket;
-- ALTER USER 'correlator'@'localhost' IDENTIFIED VIA unix_socket WITH MAX_USER_CONNECTIONS 16;

GRANT SELECT ON migratekit_oma.log_events    TO 'correlator'@'127.0.0.1';
GRANT SELECT ON migratekit_oma.job_tracking  TO 'correlator'@'127.0.0.1';
GRANT SELECT ON migratekit_oma.job_steps     TO 'correlator'@'127.0.0.1';
GRANT SELECT ON migratekit_oma.failover_jobs TO 'correlator'@'127.0.0.1';

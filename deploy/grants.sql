-- The correlator's account at the appliance's MariaDB on the same host: SELECT on four tables, nothing else, and no password.
-- By the socket MariaDB sees which user of the host connects, and admits the one with the account's name. Run it as an
-- administrator, and name the socket in the correlator's configuration (correlator config set does it):
--     mariadb < grants.sql
--     correlator config set database.unix_socket /run/mysqld/mysqld.sock
-- It may be run again: it keeps what else the account was granted. A table that this appliance does not have makes its GRANT
-- fail; leave that line out. The correlator names in its log what is missing, and works with the rest: only log_events is
-- indispensable. For a password, or for a database on another host, there is grants-password.sql.

-- The account keeps up to eight connections, and has up to 13 for a while. 24 leave room for those that a broken network has
-- not given back yet, and leave the appliance its own, whatever happens here.
CREATE USER IF NOT EXISTS 'correlator'@'localhost' IDENTIFIED VIA unix_socket;
ALTER USER 'correlator'@'localhost' IDENTIFIED VIA unix_socket WITH MAX_USER_CONNECTIONS 24;

GRANT SELECT ON migratekit_oma.log_events    TO 'correlator'@'localhost';
GRANT SELECT ON migratekit_oma.job_tracking  TO 'correlator'@'localhost';
GRANT SELECT ON migratekit_oma.job_steps     TO 'correlator'@'localhost';
GRANT SELECT ON migratekit_oma.failover_jobs TO 'correlator'@'localhost';

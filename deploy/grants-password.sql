-- The correlator's account at the appliance's MariaDB, with a password: SELECT on four tables, nothing else. Where the correlator
-- runs on the same host, grants.sql needs none.
-- Put in the host that the correlator connects from; then, as an administrator, run this and set the account's password:
--     mariadb < grants-password.sql
--     printf "ALTER USER 'correlator'@'127.0.0.1' IDENTIFIED BY '%s';\n" "$(cat /etc/correlator/db-password)" | mariadb
-- Both may be run again: this keeps the password of an account that exists, and what else it was granted. A table that this
-- appliance does not have makes its GRANT fail; leave that line out. The correlator names in its log what is missing, and works
-- with the rest: only log_events is indispensable.

-- Until its password is set, nobody can log in. The account keeps up to eight connections, and has up to 13 for a while. 24
-- leave room for those that a broken network has not given back yet, and leave the appliance its own, whatever happens here.
CREATE USER IF NOT EXISTS 'correlator'@'127.0.0.1' IDENTIFIED VIA mysql_native_password USING 'invalid';
ALTER USER 'correlator'@'127.0.0.1' WITH MAX_USER_CONNECTIONS 24;

-- In place of that account, with its host in the grants below as well:
-- from another host, and only over TLS (in the correlator's configuration: database.tls.ca):
-- CREATE USER IF NOT EXISTS 'correlator'@'correlator.example' IDENTIFIED VIA mysql_native_password USING 'invalid' REQUIRE SSL;
-- ALTER USER 'correlator'@'correlator.example' REQUIRE SSL WITH MAX_USER_CONNECTIONS 24;

GRANT SELECT ON migratekit_oma.log_events    TO 'correlator'@'127.0.0.1';
GRANT SELECT ON migratekit_oma.job_tracking  TO 'correlator'@'127.0.0.1';
GRANT SELECT ON migratekit_oma.job_steps     TO 'correlator'@'127.0.0.1';
GRANT SELECT ON migratekit_oma.failover_jobs TO 'correlator'@'127.0.0.1';

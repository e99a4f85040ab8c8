-- For database.doorbell = true: the right to read the server's binary log, in addition to the SELECTs of grants.sql.
-- With an account of grants-password.sql, write its host first (127.0.0.1). Run it as an administrator; it may be run again:
--     mariadb < grants-doorbell.sql
--
-- The right belongs to the server, not to a database: an account that has it may read every change of every database in the
-- log. The correlator uses only the fact that one of its four tables has changed. Grant it only if milliseconds are worth that.
-- The server must write a binary log. In its configuration under [mariadbd]:
--     log_bin
--     server_id = 1
--     binlog_format = ROW            -- otherwise rows of triggers and LOAD DATA cause no wake-up
-- docs/doorbell.md says what it means for a server that has replicas.

GRANT REPLICATION SLAVE ON *.* TO 'correlator'@'localhost';

-- To take it back:
-- REVOKE REPLICATION SLAVE ON *.* FROM 'correlator'@'localhost';

-- For database.doorbell = true: the right to listen to the server's binary log, beside the SELECTs of grants.sql.
-- Before running it (as an administrator), put in the host that the correlator connects from:
--     mariadb < grants-doorbell.sql
--
-- The right is the server's, not a database's: whoever has it may read every change of every database, as it is written to
-- the log. The correlator takes from it which of its four tables changed, and nothing else; give it only where milliseconds
-- are worth that. It needs a server that writes a binary log, in its configuration under [mariadbd]:
--     log_bin
--     server_id = 1
--     binlog_format = ROW            -- what triggers and LOAD DATA write rings only so
-- What else it means for a server that has replicas: docs/doorbell.md.

GRANT REPLICATION SLAVE ON *.* TO 'correlator'@'127.0.0.1';

-- To take it back:
-- REVOKE REPLICATION SLAVE ON *.* FROM 'correlator'@'127.0.0.1';

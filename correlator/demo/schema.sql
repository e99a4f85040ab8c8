-- The appliance's four tables for SQLite: same columns, same foreign keys, same indexes as in MariaDB.
-- Every row of a recording goes in unchanged: times are TEXT, 'YYYY-MM-DD HH:MM:SS[.ffffff]', enumerations and JSON
-- are unchecked TEXT (so that a test can insert values that a program must tolerate).
-- TIMESTAMP columns (marked UTC) hold UTC in whole seconds; DATETIME columns (marked local) hold the appliance's local
-- time with microseconds and no zone. SQLite enforces the foreign keys only where a connection says PRAGMA foreign_keys.
CREATE TABLE job_tracking (
  id TEXT NOT NULL PRIMARY KEY,
  parent_job_id TEXT REFERENCES job_tracking (id) ON DELETE CASCADE,
  job_type TEXT,
  operation TEXT NOT NULL,
  status TEXT,
  cloudstack_job_id TEXT,
  external_job_id TEXT,
  metadata TEXT,
  error_message TEXT,
  started_at TEXT DEFAULT CURRENT_TIMESTAMP,                              -- UTC
  completed_at TEXT,                                                      -- UTC
  created_at TEXT DEFAULT CURRENT_TIMESTAMP,                              -- UTC
  updated_at TEXT DEFAULT CURRENT_TIMESTAMP,                              -- UTC
  percent_complete INTEGER,
  canceled_at TEXT,                                                       -- local
  owner TEXT,
  context_id TEXT,
  job_category TEXT DEFAULT 'system'
);
CREATE INDEX idx_parent_job ON job_tracking (parent_job_id);
CREATE INDEX idx_status ON job_tracking (status);
CREATE INDEX idx_job_type ON job_tracking (job_type);
CREATE INDEX idx_cloudstack_job ON job_tracking (cloudstack_job_id);
CREATE INDEX idx_external_job ON job_tracking (external_job_id);
CREATE INDEX idx_started_at ON job_tracking (started_at);
CREATE INDEX idx_completed_at ON job_tracking (completed_at);
CREATE INDEX idx_job_tracking_context_id ON job_tracking (context_id);

CREATE TABLE job_steps (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  job_id TEXT NOT NULL REFERENCES job_tracking (id) ON DELETE CASCADE,
  name TEXT NOT NULL,
  seq INTEGER NOT NULL,
  status TEXT NOT NULL DEFAULT 'running',
  started_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f000', 'now', 'localtime')),  -- local
  completed_at TEXT,                                                      -- local
  error_message TEXT,
  metadata TEXT
);
CREATE UNIQUE INDEX uk_job_steps_job_seq ON job_steps (job_id, seq);

CREATE TABLE log_events (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  job_id TEXT REFERENCES job_tracking (id) ON DELETE SET NULL,
  step_id INTEGER REFERENCES job_steps (id) ON DELETE SET NULL,
  level TEXT NOT NULL,
  message TEXT NOT NULL,
  attrs TEXT,
  ts TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f000', 'now', 'localtime')),          -- local
  external_job_id TEXT
);
CREATE INDEX job_id ON log_events (job_id);
CREATE INDEX step_id ON log_events (step_id);
CREATE INDEX idx_log_events_external_job_id ON log_events (external_job_id);

CREATE TABLE failover_jobs (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  vm_context_id TEXT,
  job_id TEXT NOT NULL,
  vm_id TEXT NOT NULL,
  replication_job_id TEXT,
  job_type TEXT NOT NULL,
  status TEXT NOT NULL DEFAULT 'pending',
  source_vm_name TEXT NOT NULL,
  source_vm_spec TEXT,
  destination_vm_id TEXT,
  ossea_snapshot_id TEXT,
  linstor_snapshot_name TEXT,
  linstor_config_id INTEGER,
  network_mappings TEXT,
  error_message TEXT,
  created_at TEXT DEFAULT CURRENT_TIMESTAMP,                              -- UTC
  updated_at TEXT DEFAULT CURRENT_TIMESTAMP,                              -- UTC
  started_at TEXT,                                                        -- UTC
  completed_at TEXT                                                       -- UTC
);
-- An index name is the whole database's in SQLite, a table's own in MariaDB: log_events and job_tracking keep theirs.
CREATE UNIQUE INDEX failover_jobs_job_id ON failover_jobs (job_id);
CREATE INDEX idx_vm_id ON failover_jobs (vm_id);
CREATE INDEX failover_jobs_job_type ON failover_jobs (job_type);
CREATE INDEX failover_jobs_status ON failover_jobs (status);

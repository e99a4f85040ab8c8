"""The demo: a simulated appliance whose JobLog writes into SQLite, and the daemon that follows it, in one process.

Problem: a newcomer has no appliance, and a demo that took shortcuts would hide what the correlator is for.
Model: `scenarios.toml` describes the kinds of jobs. The player plays one through the same calls that the appliance's
engines make, and two writers commit the log rows in batches, some of them late, some rolled back.
Invariants: the rows equal a real appliance's in shape, order and visibility. No module here knows how the correlator
reads them; `run` starts the daemon through its public entry point alone. The same seed makes the same jobs.

    values     how JobLog stores times and JSON in columns
    sqlite     the file, its schema, and one thread per connection
    writers    log rows: a bounded queue, two writers, batches, late commits
    joblog     writes job_tracking and job_steps, then the log row; and the failover_jobs table
    clock      real time at an adjustable rate, and simulated time in the past
    scenarios  reads scenarios.toml: which jobs run, chosen by a seed, and rows that belong to no job
    player     plays one scenario through JobLog
    traffic    starts scenarios one after the other
    history    the weeks before the demo was started
    broker     an MQTT broker, if one is installed
    run        starts all of it in one process
"""

"""The demo: a made-up appliance whose JobLog writes into SQLite, with the daemon beside it.

Always: what reads these rows cannot tell them from a real appliance's by shape, order or visibility, and nothing in
here knows how the correlator reads them (run.py starts it, through its public entry alone).

    values     how JobLog puts times and JSON into columns
    sqlite     the file, its schema, and one thread a connection
    writers    log rows: a bounded queue, two writers, batches, late commits
    joblog     job_tracking and job_steps first, then the log row; and the failover_jobs table
    clock      time that can be hurried, and time in the past
    plans      what a job will do, before it happens
    deck       which jobs there will be, from a seed
    stage      one plan, played through JobLog
    traffic    plans one after the other, and the noise between them
    history    the hours before the demo was started
    broker     an MQTT broker, where one is installed
    run        all of it in one process
"""

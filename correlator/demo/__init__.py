"""The demo: a simulated appliance whose JobLog writes into SQLite, and the daemon that follows it, in one process.

Problem: a newcomer has no appliance, and a demo that took shortcuts would hide what the correlator is for.
Model: `scenarios.toml` describes the kinds of jobs. The player plays one through the same calls that the appliance's
engines make, and two writers commit the log rows in batches, some of them late, some rolled back.
Invariants: the rows equal a real appliance's in shape, order and visibility. No module here knows how the correlator
reads them; `run` starts the daemon through its public entry point alone. The same seed makes the same jobs.

    joblog     the file of the database, its tables and log rows as JobLog writes them: late, rolled back, out of order
    scenarios  reads scenarios.toml, and plays one scenario through JobLog, in real or in simulated time
    traffic    the weeks before the demo was started, and the live traffic
    processes  the programs that run beside it, such as an MQTT broker, if one is installed
    run        starts all of it in one process
    fleet      several appliances, with a process for each collector and gateway
"""

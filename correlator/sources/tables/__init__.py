"""Periodic reads of job_tracking, job_steps and failover_jobs."""

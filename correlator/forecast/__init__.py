"""The forecast of running jobs: percent and end, from earlier runs of the same operation.

Problem: a job's log names no steps ahead, so "steps done of steps seen" overstates the progress of a job, and falls
when the next step begins. Durations vary from VM to VM by a factor of ten, and some steps never run. A user needs a
percent that never falls, and an end time with its uncertainty.

Model: an operation's earlier runs answer. A **point** is the last event of a job: a step began or ended, the reported
percent passed a multiple of ten, or the job began. At each point the newest 100 runs are kept with their remaining
time, and with their wait: the time until their next event. An earlier run answers for a running job if it was at the
same point and waited there at least as long as this job is known to have. Its remaining time, less the time waited, is
one sample of this job's remaining time; p50 and p90 are quantiles of the samples (an empirical estimate of residual
life).

Runs of different size are compared on one **scale**, that of the typical run. Two traits of a run predict its scale:
how its VM's earlier runs compared with the median, and its pace up to the point. What each trait is worth is learned
per point by ridge regression, so that a worthless trait has no effect.

The quantiles count one more run, longer than all that are known. Beyond the longest known run a Pareto tail
extrapolates. The level of p90 adapts per operation: it rises when jobs end later than their p90, and falls when they
do not (adaptive conformal inference, Gibbs and Candès 2021, arXiv 2106.00170). When an operation changes for good,
five runs in a row beyond nine tenths of the known ones, only the new runs count.

Invariants:
* No call does I/O or reads a clock. A forecast costs the same however many steps the job has: `points.JobPlace` is kept
  with each event, and no step is replayed.
* Memory is bounded in operations, points, runs, VMs and steps. The constants stand in the modules that apply them.
* Percent never falls and is at most 99 while a job runs. p50 is at most p90. There is no forecast before three runs
  have completed.
* Only completed runs teach durations. Failed and cancelled runs teach how often an operation fails.
* Points in time are `Micros`, as everywhere in the core, because they come from rows and go to documents unchanged.
  Durations are seconds as floats: they are divided, and their logarithms are compared. `points.seconds` converts.

Modules, from the top: `running` (one running job), `forecaster` (all operations, and the runs of each), `estimate` (the
quantiles), `steps` (which come next), `points` (where a job is, and the runs that were there), `window` (order
statistics), `percent` (which goes on between two forecasts, also in a client). `trends` compares durations alone.
"""

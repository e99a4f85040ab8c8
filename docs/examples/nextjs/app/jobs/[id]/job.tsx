"use client";

import "correlator-client/progress";
import { useJob, useJobLog } from "correlator-client/react";

export function JobProgress({ id }: { id: string }) {
  const { job, unknown, synced, connection } = useJob(id);
  if (connection.state === "refused") return <p role="alert">{connection.error}</p>;
  if (job === null) {
    if (!synced) return <p>Loading…</p>;
    return <p>{unknown.length > 0 ? "Waiting for this job to start…" : "This job is gone."}</p>;
  }
  const steps = Object.entries(job.steps).sort(([, a], [, b]) => a.seq - b.seq);
  return (
    <section>
      <h1>{String(job.metadata.vm_name ?? job.operation ?? job.job_id)}</h1>
      <correlator-progress job={id} server="/correlator/" />
      <ol>
        {steps.map(([stepId, step]) => (
          <li key={stepId}>
            {step.name}: {step.status}
            {step.error && ` (${step.error})`}
          </li>
        ))}
      </ol>
      <Log id={id} />
    </section>
  );
}

function Log({ id }: { id: string }) {
  const { lines, older, error } = useJobLog(id, { level: "INFO", limit: 500 });
  return (
    <>
      {older > 0 && <p>{older} older lines are not shown.</p>}
      {error !== null && <p role="alert">Lines are missing: {error}</p>}
      <ul aria-label="Log">
        {lines.map((line) => (
          <li key={line.event_id}>
            <time dateTime={line.at}>{line.at.slice(11, 19)}</time> {line.level} {line.message}
          </li>
        ))}
      </ul>
    </>
  );
}

/** The steps of a document in their order. Pure. */

const sorted = new WeakMap();

/** The steps with their IDs. Documents are immutable, so it is done once for each. */
export function stepsOf(job) {
  let steps = sorted.get(job);
  if (steps === undefined) {
    steps = Object.entries(job.steps ?? {}).map(([id, step]) => ({ id, ...step }));
    steps.sort(inOrder);
    sorted.set(job, steps);
  }
  return steps;
}

/** Sorts steps by `seq`. A step that is only in the log yet may have none: it is the newest and comes last. */
export function inOrder(a, b) {
  return Number(!a.seq) - Number(!b.seq) || (a.seq ?? 0) - (b.seq ?? 0) || Number(a.id) - Number(b.id);
}

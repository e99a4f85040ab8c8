/** The transport `poll`: all subscriptions are requested over REST every POLL_EVERY ms. */

import { closeReason, fetchJob, parameters } from "./requests.js";

/** @import { Job, Wanted } from "../client.js" */
/** @import { Link, TransportContext } from "./transports.js" */
/** @import { View } from "./view.js" */

const POLL_EVERY = 5000;

const State = Object.freeze({
  /** The timer of the next round runs. */ WAITING: "waiting",
  /** A round is in progress. */ POLLING: "polling",
  /** A subscription came during the round, which is repeated at once. */ POLL_AGAIN: "poll again",
  CLOSED: "closed",
});

/** @param {TransportContext} context @returns {Link} */
export function polling({ environment: { clock }, request, receive, end }) {
  /** @type {Set<View>} */
  const views = new Set();
  /** @type {Map<string, {etag: string | null, job: Job}>} */
  const cache = new Map();
  /** @type {unknown} */
  let timer;
  let welcomed = false;
  /** @type {typeof State[keyof typeof State]} */
  let state = State.WAITING;

  /** @param {number} ms */
  function schedule(ms) {
    state = State.WAITING;
    clock.clearTimeout(timer);
    timer = clock.setTimeout(poll, ms);
  }

  async function poll() {
    state = State.POLLING;
    try {
      for (const view of [...views]) await pollView(view);
      endRound();
    } catch (error) {
      end(...closeReason(error));
    }
  }

  function endRound() {
    if (state === State.CLOSED) return;
    receive({ type: "pong" }); // without views to poll, the connection must not count as silent
    schedule(state === State.POLL_AGAIN ? 0 : POLL_EVERY);
  }

  /** @param {View} view */
  async function pollView(view) {
    const jobs = [];
    const unknown = [];
    if (view.wanted.jobs === undefined) {
      const query = parameters({ ...view.wanted, logs: undefined });
      const page = await request(`api/v1/jobs?limit=500&steps=1&${query}`);
      jobs.push(...(await page.json()).jobs);
    }
    for (const name of view.wanted.jobs ?? []) {
      const job = await fetchJob(request, name, cache);
      if (job === null) unknown.push(name);
      else if (matches(job, view.wanted)) jobs.push(job);
    }
    if (state === State.CLOSED || !views.has(view)) return;
    if (!welcomed) receive({ type: "welcome", epoch: null, resumed: false });
    welcomed = true;
    receive({ type: "snapshot", sub: view.id, jobs });
    receive({ type: "synced", sub: view.id, unknown });
  }

  return {
    subscribe(view) {
      views.add(view);
      if (state === State.WAITING) schedule(0);
      else if (state === State.POLLING) state = State.POLL_AGAIN;
    },
    unsubscribe(view) {
      views.delete(view);
      const wanted = new Set([...views].flatMap((each) => each.wanted.jobs ?? []));
      for (const name of cache.keys()) if (!wanted.has(name)) cache.delete(name);
    },
    get() {}, // polling receives whole documents only
    close() {
      state = State.CLOSED;
      clock.clearTimeout(timer);
    },
  };
}

/** @param {Job} job @param {Wanted} wanted */
function matches(job, wanted) {
  return /** @type {const} */ (["status", "job_type", "context_id", "instance"]).every(
    (member) => !wanted[member]?.length || wanted[member].includes(/** @type {any} */ (job[member])),
  );
}

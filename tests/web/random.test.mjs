// After random faults the client shows the daemon's jobs.
//
// The daemon is a small model of the real one: jobs with revisions, a resume ring, snapshots in
// chunks with changes between them, conflation. At random, connections and their pending messages are lost, the daemon
// restarts, empties its resume ring or sends a resync, and subscriptions are opened and closed.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Clock, follow, seeded, settle, sockets } from "./fakes.mjs";
import { Correlator } from "../../correlator/web/client.js";

const SEEDS = Number(process.env.SEEDS ?? 60);
const STEPS = 300;
const STATUSES = ["pending", "running", "completed", "failed"];
const FILTERS = [
  {},
  { status: ["running"] },
  { status: ["failed", "completed"] },
  { jobs: ["j1", "ext-2", "j9"] },
  { job_type: ["a"], status: ["running"] },
];

class Daemon {
  jobs = new Map();
  resumeRing = []; // {seq, id, was, now}: documents before and after
  links = new Set();
  runs = 0;

  constructor(random) {
    this.random = random;
    this.restart();
  }

  pick = (list) => list[Math.floor(this.random() * list.length)];

  restart() {
    for (const link of [...this.links]) this.lose(link);
    this.epoch = `epoch-${++this.runs}`;
    this.seq = Math.floor(this.random() * 5);
    this.resumeRing = [];
    // After a restart the jobs have other revisions, and some have changed or gone.
    for (const [id, job] of [...this.jobs]) {
      if (this.random() < 0.1) this.jobs.delete(id);
      else this.jobs.set(id, { ...job, rev: ++this.seq, n: this.random() < 0.3 ? this.random() : job.n });
    }
  }

  change() {
    const id = `j${Math.floor(this.random() * 12)}`;
    const was = this.jobs.get(id);
    const now = was !== undefined && this.random() < 0.1 ? undefined : this.document(id, was);
    this.seq += 1;
    if (now) this.jobs.set(id, now);
    else this.jobs.delete(id);
    this.resumeRing.push({ seq: this.seq, id, was, now });
    for (const link of this.links) link.queue.push(this.messages(link, id, was, now));
  }

  document(id, before) {
    const ids = { job_id: id, external_ids: [`ext-${id.slice(1)}`] };
    const was = before ?? { ...ids, job_type: this.pick(["a", "b"]), steps: {} };
    const now = { ...structuredClone(was), rev: this.seq + 1, status: this.pick(STATUSES), n: this.random() };
    const error = this.random() < 0.5 ? "no" : undefined;
    if (this.random() < 0.5) now.steps[this.pick([1, 2, 3])] = { name: "s", error };
    if (this.random() < 0.2) now.error = "no";
    else delete now.error;
    return JSON.parse(JSON.stringify(now));
  }

  matches = (wanted, job) =>
    job !== undefined &&
    (!wanted.jobs || wanted.jobs.some((name) => name === job.job_id || job.external_ids.includes(name))) &&
    (!wanted.status || wanted.status.includes(job.status)) &&
    (!wanted.job_type || wanted.job_type.includes(job.job_type));

  /** The messages to one connection about a change of one job. */
  messages(link, id, was, now) {
    const [puts, deltas, leaves] = [[], [], []];
    for (const [sub, { wanted, todo }] of link.subs) {
      const [before, after] = [this.matches(wanted, was), this.matches(wanted, now)];
      if (todo.has(id)) {
        if (!after) todo.delete(id);
        continue;
      }
      if (after) (before && this.random() < 0.8 ? deltas : puts).push(sub);
      else if (before) leaves.push(sub);
    }
    const messages = [];
    const { seq } = this;
    const { base, rev } = { base: was?.rev, rev: now?.rev };
    if (deltas.length) messages.push({ type: "delta", sub: deltas, seq, job_id: id, base, rev, set: patch(was, now) });
    if (puts.length) messages.push({ type: "put", sub: puts, seq, job_id: id, rev, job: now });
    if (leaves.length) messages.push({ type: "delete", sub: leaves, seq, job_id: id, reason: now ? "filter" : "gone" });
    return messages;
  }

  accept(socket) {
    const link = { socket, subs: new Map(), queue: [], read: 0, from: null };
    this.links.add(link);
    socket.open();
  }

  /** Handles the client's new messages. */
  handle(link) {
    for (; link.read < link.socket.sent.length; link.read++) {
      const message = link.socket.sent[link.read];
      if (message.type === "hello") {
        const { epoch, seq } = message.resume ?? {};
        const resumed = epoch === this.epoch && this.reaches(seq);
        if (resumed) link.from = seq;
        link.queue.push({ type: "welcome", epoch: this.epoch, seq: this.seq, resumed });
      } else if (message.type === "subscribe") {
        const { type, id, resume, ...wanted } = message;
        const sub = { wanted, todo: new Set() };
        link.subs.set(id, sub);
        // The resume ring may have moved on since the welcome.
        if (resume && link.from !== null && this.reaches(link.from)) this.replay(link, id, wanted);
        else {
          if (resume) link.queue.push({ type: "resync", reason: "gap" });
          this.begin(sub);
        }
      } else if (message.type === "unsubscribe") {
        assert.ok(link.subs.delete(message.id), "an unsubscribe without a subscription");
      } else if (message.type === "get") {
        const job = this.jobs.get(message.job_id);
        const has = ({ wanted, todo }) => this.matches(wanted, job) && !todo.has(message.job_id);
        const sub = [...link.subs].filter(([, each]) => has(each)).map(([id]) => id);
        if (job) link.queue.push({ type: "put", sub, seq: this.seq, job_id: job.job_id, rev: job.rev, job });
        else link.queue.push({ type: "error", sub: null, code: "not_found", detail: "" });
      }
    }
  }

  reaches = (seq) => seq === this.seq || (this.resumeRing.length > 0 && this.resumeRing[0].seq <= seq + 1);

  /** Conflated: for each changed job its current document, or a delete. */
  replay(link, id, wanted) {
    for (const job_id of new Set(this.resumeRing.filter((c) => c.seq > link.from).map((c) => c.id))) {
      const job = this.jobs.get(job_id);
      const about = { sub: [id], seq: this.seq, job_id };
      if (this.matches(wanted, job)) link.queue.push({ type: "put", ...about, rev: job.rev, job });
      else link.queue.push({ type: "delete", ...about, reason: "filter" });
    }
    this.finish(link, id, wanted);
  }

  begin(sub) {
    sub.todo = new Set([...this.jobs.values()].filter((job) => this.matches(sub.wanted, job)).map((job) => job.job_id));
    sub.snapshot = [...sub.todo];
  }

  /** Sends one chunk of each snapshot in progress. */
  chunk(link) {
    for (const [id, sub] of link.subs) {
      if (sub.snapshot === undefined) continue;
      const ids = sub.snapshot.splice(0, 3).filter((id) => sub.todo.delete(id));
      const jobs = ids.map((id) => this.jobs.get(id));
      const more = sub.snapshot.length > 0;
      link.queue.push({ type: "snapshot", sub: id, seq: this.seq, more, jobs });
      if (more) continue;
      delete sub.snapshot;
      this.finish(link, id, sub.wanted);
    }
  }

  finish(link, id, wanted) {
    const known = (name) => [...this.jobs.values()].some((job) => this.matches({ jobs: [name] }, job));
    const unknown = (wanted.jobs ?? []).filter((name) => !known(name));
    link.queue.push({ type: "synced", sub: id, seq: this.seq, unknown });
  }

  resync(link) {
    if ([...link.subs.values()].some((sub) => sub.snapshot !== undefined)) return;
    link.queue.push({ type: "resync", reason: "gap" });
    for (const sub of link.subs.values()) this.begin(sub);
  }

  /** Sends some pending messages in one frame; those of one change stay together. */
  deliver(link, most = Infinity) {
    const frame = link.queue.splice(0, most).flat();
    if (frame.length > 0) link.socket.frame(...frame);
  }

  lose(link) {
    this.links.delete(link);
    link.socket.end(this.pick([1006, 1012, 4508]));
  }
}

/** The merge patch from `was` to `now`. */
function patch(was, now) {
  const set = {};
  for (const name of Object.keys({ ...was, ...now })) {
    if (!(name in now)) set[name] = null;
    else if (JSON.stringify(was[name]) === JSON.stringify(now[name])) continue;
    else if (name === "steps") set[name] = patch(was.steps, now.steps);
    else if (typeof was[name] === "object" && !Array.isArray(was[name])) set[name] = patch(was[name] ?? {}, now[name]);
    else set[name] = now[name];
  }
  return set;
}

async function run(seed) {
  const random = seeded(seed);
  const [clock, Socket, daemon] = [new Clock(random), sockets(), new Daemon(random)];
  const client = new Correlator({ url: "http://h", clock, WebSocket: Socket, transports: ["websocket"] });
  const open = new Set();
  const subscribe = () => {
    const wanted = daemon.pick(FILTERS);
    open.add({ wanted, ...follow(client, wanted) });
  };
  subscribe();

  const accept = () => {
    if (Socket.last?.readyState === 0 && Socket.last.onopen) daemon.accept(Socket.last);
    for (const link of daemon.links) if (link.socket.closedWith !== null) daemon.links.delete(link);
  };
  for (let step = 0; step < STEPS; step++) {
    const chance = random();
    if (chance < 0.5) daemon.change();
    else if (chance < 0.53) for (const link of [...daemon.links]) daemon.lose(link);
    else if (chance < 0.54) daemon.restart();
    else if (chance < 0.55) daemon.resumeRing = [];
    else if (chance < 0.57) for (const link of daemon.links) daemon.resync(link);
    else if (chance < 0.59 && open.size < 4) subscribe();
    else if (chance < 0.6 && open.size > 1) {
      const closed = daemon.pick([...open]);
      open.delete(closed);
      closed.close();
    } else if (chance < 0.7) await clock.pass(random() * 3000);
    accept();
    for (const link of [...daemon.links]) {
      if (random() < 0.7) daemon.handle(link);
      if (random() < 0.5) daemon.chunk(link);
      if (random() < 0.7) daemon.deliver(link, Math.floor(random() * 6));
    }
  }

  // From here on no message is lost.
  for (let round = 0; round < 40; round++) {
    await clock.pass(1000);
    accept();
    for (const link of [...daemon.links]) {
      daemon.handle(link);
      daemon.chunk(link);
      link.queue.push({ type: "bookmark", seq: daemon.seq, at: "…" });
      daemon.deliver(link);
    }
  }
  assert.equal(client.connection.state, "live");
  for (const { wanted, updates } of open) {
    const expected = [...daemon.jobs.values()].filter((job) => daemon.matches(wanted, job));
    const shown = updates.at(-1);
    const byId = (a, b) => (a.job_id < b.job_id ? -1 : 1);
    assert.deepEqual([...shown.jobs.values()].sort(byId), expected.sort(byId), JSON.stringify(wanted));
    assert.equal(shown.synced, true);
    const held = (wanted.jobs ?? []).filter((name) => !expected.some((job) => daemon.matches({ jobs: [name] }, job)));
    for (const name of shown.unknown) assert.ok(held.includes(name), name);
  }
  client.close();
  await settle();
  return daemon.runs;
}

test(`the client shows the daemon's jobs after ${SEEDS} runs with random faults`, async () => {
  for (let seed = 1; seed <= SEEDS; seed++) {
    await run(seed).catch((error) => {
      error.message = `seed ${seed}: ${error.message}`;
      throw error;
    });
  }
});

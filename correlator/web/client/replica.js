/**
 * The jobs that the views show, folded from the daemon's messages. No clock, no I/O.
 *
 * Problem: messages between two connections are lost, and a restarted daemon numbers its revisions anew.
 *
 * Invariants: a job is always a whole document that the daemon has published. Its revision never decreases in one run
 * of the daemon. A patch is merged only into its base revision; for another one the whole document is requested. There
 * is a position to resume from only while no view and no requested document is missing.
 */

import { merge, newest } from "./documents.js";

/** @import { Connection, Job, JobEvent, LogLine, Update, Wanted } from "../client.js" */

/** @typedef {{epoch: string, seq: number}} Position */
/** @typedef {{type: string, [member: string]: any}} Message */

const MAX_TRIES = 5; // requests for one document
const RETRIED_AT_ONCE = 50;

export class Replica {
  /** @type {Map<number, View>} */ views = new Map();
  /** @type {Position | null} from which a resume can continue */ position = null;
  /** @type {string | null} null while polling: its documents carry no epoch, so their revisions are not compared */
  #epoch = null;
  /** @type {Map<string, {job: Job, epoch: string | null}>} shared by all views */ #documents = new Map();
  /** @type {Map<string, Set<View>>} requested documents in the order of the requests, and the views that need them */
  #requested = new Map();
  /** @type {Map<string, number>} failed requests by job ID */ #tries = new Map();
  /** @type {Set<string>} job IDs to request again with the next bookmark */ #retryLater = new Set();
  #resumable = false;

  /** @param {string | null} epoch @param {boolean} resumed @param {boolean} resumable  if this transport can */
  welcome(epoch, resumed, resumable) {
    this.#epoch = epoch;
    this.#resumable = resumable;
    this.#requested.clear();
    this.#tries.clear();
    this.#retryLater.clear();
    if (!resumed) this.position = null;
    for (const view of this.views.values()) {
      if (view.sync === Sync.CURRENT) view.sync = Sync.WAITING;
      if (!resumed) view.resumable = false;
      view.refusal = null;
    }
  }

  /** True if the token opens nothing of what is wanted, as if it had been refused itself. */
  get isRefused() {
    return this.views.size > 0 && [...this.views.values()].every((view) => view.refusal !== null);
  }

  /** @param {View} view */
  remove(view) {
    this.views.delete(view.id);
    for (const views of this.#requested.values()) views.delete(view);
    this.#evict(view.members);
  }

  /**
   * The jobs of a view after its changes, and the newest of them. The work is one copy plus the number of changes.
   * @param {View} view @returns {[Map<string, Job>, Job | null]}
   */
  changes(view) {
    const jobs = new Map(view.update.jobs);
    let last = view.update.job;
    for (const id of view.changed) {
      const job = view.members.has(id) ? this.#documents.get(id)?.job : undefined;
      if (job !== undefined) jobs.set(id, job);
      else jobs.delete(id);
    }
    if (last !== null && view.changed.has(last.job_id)) last = newest(jobs.values());
    else last = newest([...(last === null ? [] : [last]), ...[...view.changed].flatMap((id) => jobs.get(id) ?? [])]);
    return [jobs, last];
  }

  /**
   * Folds one message. Unknown types and members are ignored, so that the protocol can be extended.
   * @param {Message} message
   * @returns {string[]} job IDs to request: their patch applies to another revision than the stored one
   */
  receive(message) {
    const missing = this.#fold(message, this.#viewsOf(message.sub));
    const again = message.type === "bookmark" ? this.#nextRetries() : [];
    // Before every view is complete, a position would cover messages that have not arrived.
    if (this.#resumable && this.#epoch !== null && Number.isInteger(message.seq) && this.#isComplete()) {
      this.position = { epoch: this.#epoch, seq: message.seq };
    }
    return missing === null ? again : [missing, ...again];
  }

  /** @param {Message} message @param {View[]} views @returns {string | null} */
  #fold(message, views) {
    switch (message.type) {
      case "snapshot":
        for (const view of views) view.beginSnapshot();
        for (const job of message.jobs) this.#put(job, views);
        return null;
      case "synced":
        for (const view of views) this.#evict(view.complete(message.unknown ?? []));
        return null;
      case "put":
        this.#put(message.job, views);
        return null;
      case "delta":
        return this.#delta(message, views);
      case "delete":
        for (const view of views) {
          this.#requested.get(message.job_id)?.delete(view);
          view.delete(message.job_id);
        }
        this.#evict([message.job_id]);
        return null;
      case "log":
        for (const view of views) view.addLine(message);
        return null;
      case "event":
        for (const view of views) view.addEvent(message);
        return null;
      case "resync":
        this.position = null;
        // It names no subscription. A view without a new snapshot keeps its documents; there is no position until then.
        for (const view of this.views.values()) if (view.sync === Sync.CURRENT) view.expect();
        return null;
      case "error":
        if (message.code === "forbidden") for (const view of views) view.refuse(message.detail);
        // Without a subscription it answers a `get`. A daemon that omits the job's ID answers in request order.
        if (message.sub === null || message.sub === undefined) this.#requestFailed(message.code, message.job_id);
        return null;
      default:
        return null;
    }
  }

  /** @param {Job} job @param {View[]} views */
  #put(job, views) {
    const joined = [...views, ...(this.#requested.get(job.job_id) ?? [])];
    this.#clearRequest(job.job_id);
    // A job that no view needs is not stored, because nothing would evict it.
    if (joined.length === 0 && !this.#documents.has(job.job_id)) return;
    if (this.#isNewer(job)) this.#store(job);
    for (const view of joined) view.add(job);
  }

  /** @param {Message} message @param {View[]} views @returns {string | null} */
  #delta(message, views) {
    const stored = this.#documents.get(message.job_id);
    const job = stored?.epoch === this.#epoch ? stored?.job : undefined;
    if (job !== undefined && job.rev === message.base) {
      this.#store({ ...merge(job, message.set), rev: message.rev });
    } else if (job === undefined || job.rev < message.rev) {
      const waiting = this.#requested.get(message.job_id);
      this.#requested.set(message.job_id, new Set([...(waiting ?? []), ...views]));
      return waiting === undefined ? message.job_id : null;
    }
    for (const view of views) view.add(/** @type {any} */ (this.#documents.get(message.job_id)).job);
    return null;
  }

  /**
   * A request for a document failed. It is repeated with a later bookmark, MAX_TRIES times in all. After that only a
   * fresh snapshot is complete, so there is no position to resume from.
   * @param {string} code @param {string} [named]
   */
  #requestFailed(code, named) {
    const jobId = [...this.#requested.keys()].find(
      (id) => !this.#retryLater.has(id) && (named === undefined || id === named),
    );
    if (jobId === undefined) return;
    const tries = (this.#tries.get(jobId) ?? 0) + 1;
    if (code !== "not_found" && tries < MAX_TRIES) {
      this.#tries.set(jobId, tries);
      this.#retryLater.add(jobId);
      return;
    }
    this.#clearRequest(jobId);
    if (code === "not_found") return;
    this.#resumable = false;
    this.position = null;
  }

  /** @param {string} jobId */
  #clearRequest(jobId) {
    this.#requested.delete(jobId);
    this.#tries.delete(jobId);
    this.#retryLater.delete(jobId);
  }

  /** Job IDs to request again now, moved to the end of the order of requests. */
  #nextRetries() {
    const ids = [...this.#retryLater].slice(0, RETRIED_AT_ONCE);
    for (const id of ids) {
      const views = /** @type {Set<View>} */ (this.#requested.get(id));
      this.#requested.delete(id);
      this.#requested.set(id, views);
      this.#retryLater.delete(id);
    }
    return ids;
  }

  /** @param {Job} job */
  #isNewer(job) {
    const stored = this.#documents.get(job.job_id);
    if (stored === undefined) return true;
    if (this.#epoch === null) return JSON.stringify(stored.job) !== JSON.stringify(job);
    return stored.epoch !== this.#epoch || job.rev > stored.job.rev;
  }

  /** @param {Job} job */
  #store(job) {
    this.#documents.set(job.job_id, { job, epoch: this.#epoch });
    for (const view of this.views.values()) if (view.members.has(job.job_id)) view.touch(job.job_id);
  }

  /** Evicts documents that no view shows any more. @param {Iterable<string>} ids */
  #evict(ids) {
    const views = [...this.views.values()];
    for (const id of ids) if (!views.some((view) => view.members.has(id))) this.#documents.delete(id);
  }

  #isComplete() {
    return this.#requested.size === 0 && [...this.views.values()].every((view) => view.isSettled);
  }

  /** @param {unknown} sub @returns {View[]} */
  #viewsOf(sub) {
    const ids = Array.isArray(sub) ? sub : [sub];
    return ids.flatMap((id) => this.views.get(id) ?? []);
  }
}

// -- One subscription: the jobs it shows, and the changes that its callback has not received yet.

const MAX_LINES = 10_000; // pending log lines of one subscription

/** How far a view is on its connection. */
const Sync = Object.freeze({
  /** The daemon has not sent the missed changes, or a snapshot, yet. */
  WAITING: "waiting",
  /** A snapshot is arriving. Until it is complete, the old members are shown. */
  RECEIVING: "receiving",
  CURRENT: "current",
});

export class View {
  sync = /** @type {typeof Sync[keyof typeof Sync]} */ (Sync.WAITING);
  /** @type {Set<string>} */ members = new Set();
  /** @type {Set<string> | null} jobs received since a snapshot became possible */ arriving = new Set();
  /** Was complete at the replica's position, so a resume can continue from there. */ resumable = false;
  /** Was complete at least once. */ synced = false;
  /** @type {string | null} why the token of this connection does not open it */ refusal = null;
  /** @type {Connection} of which its callback knows */ connection;
  /** @type {string[]} */ unknown = [];
  /** @type {Set<string>} */ changed = new Set();
  /** @type {LogLine[]} */ lines = [];
  dropped = 0;
  /** @type {JobEvent[]} */ events = [];
  touched = true;

  /**
   * @param {number} id
   * @param {Wanted} wanted  as it is sent; `logs` only if there is a callback for log lines
   * @param {(update: Update) => void} onChange
   * @param {((lines: LogLine[], dropped: number) => void) | undefined} onLog
   * @param {((event: JobEvent) => void) | undefined} onEvent
   * @param {Connection} connection
   */
  constructor(id, wanted, onChange, onLog, onEvent, connection) {
    this.id = id;
    this.wanted = wanted;
    this.onChange = onChange;
    this.onLog = onLog;
    this.onEvent = onEvent;
    this.connection = connection;
    /** @type {Update} */
    this.update = { jobs: new Map(), job: null, changed: new Set(), unknown: [], synced: false, connection };
  }

  /** Nothing of it is still to come. */
  get isSettled() {
    return this.sync === Sync.CURRENT || this.refusal !== null;
  }

  /** @param {string} why */
  refuse(why) {
    if (this.refusal === why) return;
    this.refusal = why;
    this.resumable = false;
    this.touched = true;
  }

  /** Prepares for missed changes or for a snapshot: the daemon decides which. */
  expect() {
    this.sync = Sync.WAITING;
    this.arriving = new Set();
  }

  beginSnapshot() {
    this.sync = Sync.RECEIVING;
    this.arriving ??= new Set();
    this.resumable = false;
  }

  /** @param {string[]} unknown @returns {string[]} IDs of the jobs that a new snapshot does not contain any more */
  complete(unknown) {
    const { members, arriving } = this;
    if (this.sync === Sync.RECEIVING && arriving !== null) this.members = arriving;
    const gone = this.members === members ? [] : [...members].filter((id) => !this.members.has(id));
    for (const id of gone) this.changed.add(id);
    this.unknown = unknown;
    this.refusal = null;
    this.arriving = null;
    this.sync = Sync.CURRENT;
    this.resumable = this.synced = this.touched = true;
    return gone;
  }

  /** @param {Job} job */
  add(job) {
    this.arriving?.add(job.job_id);
    if (this.members.has(job.job_id)) return;
    this.members.add(job.job_id);
    this.touch(job.job_id);
    const names = [job.job_id, job.context_id, ...(job.external_ids ?? [])];
    this.unknown = this.unknown.filter((name) => !names.includes(name));
  }

  /** @param {string} jobId */
  delete(jobId) {
    this.arriving?.delete(jobId);
    if (this.members.delete(jobId)) this.touch(jobId);
  }

  /** @param {string} jobId */
  touch(jobId) {
    this.changed.add(jobId);
    this.touched = true;
  }

  /** @param {{[member: string]: any}} message */
  addLine({ type: _type, sub: _sub, ...line }) {
    if (this.onLog === undefined) return;
    this.touched = true;
    if (line.dropped !== undefined) {
      this.dropped += line.dropped;
      return;
    }
    this.lines.push(/** @type {any} */ (line));
    // Timers of a hidden page are rare. The oldest lines are evicted and counted like lines that the daemon dropped.
    if (this.lines.length > MAX_LINES) this.dropped += this.lines.splice(0, MAX_LINES / 10).length;
  }

  /** @param {{[member: string]: any}} message */
  addEvent({ type: _type, sub: _sub, seq: _seq, ...event }) {
    if (this.onEvent === undefined) return;
    this.touched = true;
    this.events.push(/** @type {any} */ (event));
  }
}

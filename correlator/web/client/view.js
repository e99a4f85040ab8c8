/** One subscription: the jobs it shows, and the changes that its callback has not received yet. */

/** @import { Connection, Job, JobEvent, LogLine, Update, Wanted } from "../client.js" */

const MAX_LINES = 10_000; // pending log lines of one subscription

/** How far a view is on its connection. */
export const Sync = Object.freeze({
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
    /** @type {Update} */
    this.update = { jobs: new Map(), job: null, changed: new Set(), unknown: [], synced: false, connection };
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

/** Types of client.js, the browser client of a correlator. Not needed at run time. */

export type Level = "DEBUG" | "INFO" | "WARN" | "ERROR";
export type JobStatus = "pending" | "running" | "completed" | "failed" | "cancelled";
export type StepStatus = "running" | "completed" | "failed" | "skipped" | "pending" | "cancelled";

/**
 * A job, as docs/protocol.md describes it. A member that has no value is null or missing, which mean the same: after a
 * patch it is missing. Times are RFC 3339 in UTC.
 */
export interface Job {
  readonly job_id: string;
  readonly external_ids: readonly string[];
  /** Number of all external IDs, up to 10,000, if `external_ids` has only the newest ones. */
  readonly external_ids_cut?: number;
  readonly context_id?: string | null;
  readonly parent_job_id?: string | null;
  readonly child_job_ids: readonly string[];
  /** Number of all children, if `child_job_ids` has only the newest ones. */
  readonly child_job_ids_cut?: number;
  readonly job_type?: string | null;
  readonly operation?: string | null;
  readonly category?: string | null;
  readonly owner?: string | null;
  readonly status: JobStatus;
  readonly terminal: boolean;
  readonly error?: string | null;
  /** Bytes of the whole error, if `error` is only its beginning. */
  readonly error_cut?: number | null;
  readonly started_at?: string | null;
  readonly ended_at?: string | null;
  readonly updated_at: string;
  /** As of `updated_at`. For a running job, compute it from `started_at`. */
  readonly duration_seconds?: number | null;
  readonly progress: Progress;
  /** From earlier runs of the operation; null without a basis, and once the job has ended. */
  readonly forecast?: Forecast | null;
  /** How long an ended job took, compared with earlier runs; null without a basis. */
  readonly compared_with?: Comparison | null;
  readonly current_step?: string | null;
  /** By step id; order them by `seq`, those with 0 last. */
  readonly steps: Readonly<Record<string, Step>>;
  /** Number of all steps, if `steps` has only the newest ones, as a gateway may. */
  readonly steps_cut?: number;
  /** Running, and silent for longer than the daemon's `jobs.stalled_after`. */
  readonly stalled: boolean;
  readonly last_event_at?: string | null;
  readonly last_message?: LastMessage | null;
  readonly warnings: number;
  readonly errors: number;
  /** If it was too large, `_cut` has the size in bytes of each omitted member. */
  readonly metadata: Readonly<Record<string, unknown>> & { readonly _cut?: Readonly<Record<string, number>> };
  readonly source: "joblog" | "legacy";
  readonly rev: number;
  /** False while the daemon still counts the log rows from before its first start; else absent. */
  readonly counts_complete?: boolean;
  /** False if the table of steps could not be read: `steps` has only what the log says; else absent. */
  readonly steps_complete?: boolean;
  /** At a gateway: the appliance that the job belongs to; else absent. */
  readonly instance?: string;
  /** What people call the operation; absent unless the daemon has a title for it. */
  readonly title?: string;
  /** The same of `current_step`. */
  readonly current_step_title?: string;
}

export interface Progress {
  /** 0 to 100; 100 only of a completed job. */
  readonly percent: number;
  /** How `percent` was computed; later versions may add values. */
  readonly basis: "reported" | "history" | "steps" | "legacy" | (string & {});
  readonly steps_done: number;
  readonly steps_failed: number;
  readonly steps_running: number;
  readonly steps_skipped: number;
  readonly steps_seen: number;
  /** Steps seen, and those ahead that at least half of the earlier runs had; null without a forecast. */
  readonly steps_expected?: number | null;
}

/** When a job will probably end. Use `remaining` for what it says at a moment. */
export interface Forecast {
  /** Half of all jobs end before `p50`, nine of ten before `p90`. */
  readonly ends_at: { readonly p50: string; readonly p90: string };
  /** The time of the forecast, by the daemon's clock. */
  readonly as_of: string;
  /** Number of earlier runs that it rests on. */
  readonly runs: number;
  readonly state: ForecastState;
  /** The median duration of earlier runs. */
  readonly typical_seconds: number;
  /** The share of earlier runs that did not complete, 0 to 1. */
  readonly failure_rate: number;
  /** In the order of earlier runs. */
  readonly steps_ahead: readonly StepAhead[];
}

/**
 * rough: fewer than 10 earlier runs. late: longer at this point than 90 % of them. overdue: longer than any of them.
 * Later versions may add values.
 */
export type ForecastState = "rough" | "on_track" | "late" | "overdue" | (string & {});

export interface StepAhead {
  readonly name: string;
  /** The share of earlier runs that had this step after the present one, 0 to 1. */
  readonly share: number;
  readonly typical_seconds: number;
  /** What people call it; absent unless the daemon has a title for it. */
  readonly title?: string;
}

export interface Comparison {
  /** The median duration of earlier runs. */
  readonly typical_seconds: number;
  readonly runs: number;
  /** The share of earlier runs that took less time, in percent. */
  readonly percentile: number;
}

export interface Step {
  readonly seq: number;
  readonly name: string;
  readonly status: StepStatus;
  readonly started_at?: string | null;
  readonly ended_at?: string | null;
  readonly duration_seconds?: number | null;
  readonly error?: string | null;
  /** Bytes of the whole error, if `error` is only its beginning. */
  readonly error_cut?: number | null;
  /** What people call it; absent unless the daemon has a title for it. */
  readonly title?: string;
}

export interface LastMessage {
  readonly level: Level;
  readonly text: string;
  readonly at?: string | null;
}

/** A filter: AND between its members, OR inside one. `{}` is every job in the daemon's memory. */
export interface Wanted {
  /** Any IDs: UUIDs, external IDs, context IDs, legacy IDs; also IDs that do not exist yet. `[]` is no job. */
  jobs?: string[];
  status?: string[];
  job_type?: string[];
  context_id?: string[];
  /** Names of appliances, at a gateway. */
  instance?: string[];
  /** The lowest level of log lines, which are passed to `onLog` only. */
  logs?: Level;
}

/** State of a subscription. Frozen; each change creates a new one. */
export interface Update {
  /** By job_id. A new Map after each change; unchanged jobs are the same objects. */
  readonly jobs: ReadonlyMap<string, Job>;
  /** The newest of `jobs` by `started_at`: the job of a subscription to one ID. */
  readonly job: Job | null;
  /** The job_ids that were added, changed or removed since the last update. */
  readonly changed: ReadonlySet<string>;
  /** Subscribed IDs that no job has yet. The daemon waits for them. */
  readonly unknown: readonly string[];
  /** True once the first snapshot is complete: a job that is not here does not exist. */
  readonly synced: boolean;
  readonly connection: Connection;
}

/** State of the connection. Frozen; each change creates a new one. */
export interface Connection {
  /**
   * connecting: an attempt is in progress. live. stale: no message arrives, or the daemon does not reach its database.
   * offline: the next attempt is at `retry_at`. paused: the page is hidden. refused: the token or the origin is not
   * accepted; it does not try again by itself.
   */
  readonly state: "connecting" | "live" | "stale" | "offline" | "paused" | "refused";
  readonly transport: "websocket" | "sse" | "poll" | null;
  /** State of the daemon's database; null if the daemon has not reported it. */
  readonly source: "live" | "stale" | "down" | null;
  readonly lag_seconds: number;
  /** Milliseconds since 1970. */
  readonly retry_at: number | null;
  /** Why it is not live, or what was wrong with the last request; null once connected. */
  readonly error: string | null;
  /**
   * Milliseconds that the daemon's clock is ahead of this one, by the messages that carry its current time; null until
   * one has come. Add it to `Date.now()` before you compare that with a time of a document.
   */
  readonly ahead_ms: number | null;
}

export interface LogLine {
  readonly job_id: string;
  readonly event_id: number;
  readonly level: Level;
  readonly step_id: number | null;
  readonly message: string;
  readonly attrs: unknown;
  readonly at: string;
}

export interface HistoryOptions {
  /** The `next_after` of the page before. Default: the first page. */
  after?: string;
  /** The lowest level. Default: DEBUG. */
  level?: Level;
  /** Most lines of the page. Default and maximum: 1000. */
  limit?: number;
}

export interface LogPage {
  /** In the order of time. */
  readonly events: readonly Omit<LogLine, "job_id">[];
  /** Where the next page begins, and later lines. */
  readonly next_after: string | null;
  /** False if all lines so far have been read. A page may be short, or empty, before that. */
  readonly more: boolean;
}

/** A running job became late or overdue. A connection that lags may lose it. */
export interface JobEvent {
  /** Later versions may add values. */
  readonly kind: "job.late" | "job.overdue" | (string & {});
  readonly job_id: string;
  readonly event_id: number | null;
  readonly step_id: number | null;
  readonly step_name: string | null;
  readonly error: string | null;
  readonly at: string;
}

export interface Options {
  /** Base URL of the correlator. Default: the folder of client.js. Set it in a bundle. */
  url?: string | URL;
  /** A function is called for each connection, and once more if its token is refused. */
  token?: string | (() => string | Promise<string>);
  /** Default: all, in this order. */
  transports?: ("websocket" | "sse" | "poll")[];
  /** Default true: disconnect while the page has been hidden for more than 30 s. */
  pauseWhenHidden?: boolean;
  /** Used instead of the global ones, for Node and for tests. */
  WebSocket?: unknown;
  EventSource?: unknown;
  fetch?: typeof fetch;
  /** Milliseconds; `random` from 0 to 1. */
  clock?: {
    now(): number;
    setTimeout(callback: () => void, ms: number): unknown;
    clearTimeout(timer: unknown): void;
    random(): number;
  };
}

export interface More {
  /** The lowest level of log lines. Default: that of the filter, else INFO. */
  logs?: Level;
  /** Called with new log lines (websocket and event stream). `dropped`: number of lines lost before these. */
  onLog?: (lines: LogLine[], dropped: number) => void;
  /** Called when a job becomes late or overdue (websocket and event stream); `job.forecast.state` shows it too. */
  onEvent?: (event: JobEvent) => void;
}

export interface Subscription {
  close(): void;
  /** The last update that was passed to `onChange`; before the first, an empty one. */
  readonly update: Update;
}

/** One connection for all its subscriptions. */
export class Correlator {
  constructor(options?: Options);
  /** `onChange` is called soon, and then after changes of the update, at most once per 16 ms. */
  subscribe(what: string | string[] | Wanted, onChange: (update: Update) => void, more?: More): Subscription;
  readonly connection: Connection;
  /** `callback` is called soon, and after each change, until `close()`. Returns a function that stops it. */
  onConnection(callback: (connection: Connection) => void): () => void;
  /** One page of a job's log lines from the daemon's database. Rejects with an `Error`. */
  history(jobId: string, options?: HistoryOptions): Promise<LogPage>;
  close(): void;
}

/** The server of a shared connection. */
export type SharedOptions = Pick<Options, "url" | "token">;

/**
 * `Correlator.subscribe` on the connection that all parts of a page share: one for each server and token. It is closed 5 s
 * after its last subscription.
 */
export function subscribe(
  what: string | string[] | Wanted,
  onChange: (update: Update) => void,
  more?: More & SharedOptions,
): Subscription;

/** The newest of several jobs, by the daemon's order: the job found by an ID that several jobs have. */
export function newest(jobs: Iterable<Job>): Job | null;

/** `target` with the JSON merge patch `patch` applied (RFC 7386). The arguments are not changed. */
export function merge(target: unknown, patch: unknown): unknown;

/** What the forecast of a job says at a moment. */
export interface Remaining {
  /** Seconds until the job has ended in half of all cases; 0 or more. */
  readonly p50: number;
  /** Seconds until the job has ended in nine of ten cases. */
  readonly p90: number;
  /** It moves by the clock if its basis is `history`, but stands from p50 on and while the job is overdue. At most 99. */
  readonly percent: number;
  readonly state: ForecastState;
}

/**
 * The time that a running job probably still needs; null without a forecast.
 * @param now Milliseconds since 1970 by the daemon's clock: `Date.now() + (connection.ahead_ms ?? 0)`.
 * @param before The last result for the same job. With it, the percent does not fall when a new document says less.
 */
export function remaining(job: Job | null, now: number, before?: Remaining | null): Remaining | null;

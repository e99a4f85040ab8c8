/** Types of client.js, the browser client of a correlator. Not needed at run time. */

/*
 * A job, as docs/protocol.md describes it. A member that has no value is null or missing, which mean the same: after a
 * patch it is missing. Times are RFC 3339 in UTC.
 */
// begin: written by make docs
/** A job. It changes only with its `rev`: the duration of a running job or step is that at `updated_at`. */
export interface Job {
  /** A job's UUID; of a legacy job its own ID. */
  readonly job_id: string;
  /** Each leads to this job, unless a newer one carries it too. */
  readonly external_ids: readonly string[];
  readonly context_id?: string | null;
  readonly parent_job_id?: string | null;
  /** In the order of their start; the newest 1,000 at the most. */
  readonly child_job_ids: readonly string[];
  readonly job_type?: string | null;
  readonly operation?: string | null;
  readonly category?: string | null;
  readonly owner?: string | null;
  readonly status: JobStatus;
  /** True if the job has ended. */
  readonly terminal: boolean;
  readonly error?: string | null;
  readonly started_at?: string | null;
  readonly ended_at?: string | null;
  readonly updated_at: string;
  readonly duration_seconds?: number | null;
  readonly progress: Progress;
  /** null with fewer than 3 earlier runs, for legacy jobs, and once the job has ended. */
  readonly forecast?: Forecast | null;
  /** Of an ended job, if earlier runs were known. */
  readonly compared_with?: Comparison | null;
  /** The name of the running step, the highest of several. */
  readonly current_step?: string | null;
  /** By step id; empty in a list of jobs that did not ask. */
  readonly steps: Readonly<Record<string, Step>>;
  /** Running, and silent longer than `jobs.stalled_after`. */
  readonly stalled: boolean;
  readonly last_event_at?: string | null;
  readonly last_message?: LastMessage | null;
  readonly warnings: number;
  readonly errors: number;
  readonly metadata: Metadata;
  readonly source: Source;
  /** The `seq` of the job's last change. */
  readonly rev: number;
  /** The number of all external IDs, up to 10,000, where `external_ids` has the newest. */
  readonly external_ids_cut?: number;
  /** The number of all children, where `child_job_ids` has not all of them. */
  readonly child_job_ids_cut?: number;
  /** false while the log's past is still being read after a first start; else absent. */
  readonly counts_complete?: boolean;
  /** false if job_steps cannot be read: `steps` has what the log says; else absent. */
  readonly steps_complete?: boolean;
  /** Bytes of the whole error; absent unless `error` is only its beginning. */
  readonly error_cut?: number;
  /** At a gateway: the number of all steps, where `steps` has only the newest. */
  readonly steps_cut?: number;
  /** At a gateway: the appliance that the job belongs to. */
  readonly instance?: string;
  /** What people call the operation, if `[labels]` has a title. */
  readonly title?: string;
  /** The same of `current_step`. */
  readonly current_step_title?: string;
  /** null unless the job has failed, and until its tables say so. */
  readonly failure?: Failure | null;
}

export type JobStatus = "cancelled" | "completed" | "failed" | "pending" | "running";

/** As the appliance keeps it; if it was cut, `_cut` has the bytes of each missing member. */
export type Metadata = Readonly<Record<string, unknown>> & {
  /** A text, where the appliance has it: the name of the virtual machine. */
  readonly vm_name?: string;
  readonly _cut?: Readonly<Record<string, number>>;
};

/** `legacy`: a job known from `failover_jobs` alone. */
export type Source = "joblog" | "legacy";

/** The progress of a job. It is 100 percent only if the job has completed. A completed job may have failed steps. */
export interface Progress {
  readonly percent: number;
  /**
   * What `percent` rests on: JobLog's own percent; earlier runs of the operation; steps done of steps seen; the
   * status that `failover_jobs` has. More may come.
   */
  readonly basis: "reported" | "history" | "steps" | "legacy" | (string & {});
  readonly steps_done: number;
  readonly steps_failed: number;
  readonly steps_running: number;
  readonly steps_skipped: number;
  readonly steps_seen: number;
  /** The steps seen, and those ahead that at least half of the earlier runs had. See `forecast`. */
  readonly steps_expected?: number | null;
}

/** When a running job will probably end, from earlier runs of the same job type and operation. */
export interface Forecast {
  readonly ends_at: ForecastEnd;
  /** The time at which the forecast was made. */
  readonly as_of: string;
  /** The number of earlier runs that it rests on. */
  readonly runs: number;
  /**
   * How the job compares with earlier runs at the same point: fewer than 10 were there; as usual; it has waited
   * there longer than 9 of 10; longer than any. More may come.
   */
  readonly state: "rough" | "on_track" | "late" | "overdue" | (string & {});
  /** The median duration of earlier runs, in seconds. */
  readonly typical_seconds: number;
  /** The share of earlier runs that did not complete. */
  readonly failure_rate: number;
  /** In their usual order. */
  readonly steps_ahead: readonly StepAhead[];
}

/** The end of a job: in half of all cases before `p50`, in nine of ten before `p90`. */
export interface ForecastEnd {
  readonly p50: string;
  readonly p90: string;
}

/** A step that is still to come. */
export interface StepAhead {
  readonly name: string;
  /** Of the earlier runs, those that had it. */
  readonly share: number;
  /** The median time that earlier runs spent in it. */
  readonly typical_seconds: number;
  /** What people call the step, if `[labels]` has a title for it. */
  readonly title?: string;
}

/** An ended job beside earlier runs of its operation. */
export interface Comparison {
  /** The median duration of earlier runs, in seconds. */
  readonly typical_seconds: number;
  readonly runs: number;
  /** The percentage of these runs that took less time. */
  readonly percentile: number;
}

export type StepStatus = "pending" | "running" | "completed" | "failed" | "cancelled" | "skipped";

/** One step of a job. Order steps by `seq`; 0 means that it is not known yet, and comes last. */
export interface Step {
  readonly seq: number;
  readonly name: string;
  readonly status: StepStatus;
  readonly started_at?: string | null;
  readonly ended_at?: string | null;
  readonly duration_seconds?: number | null;
  readonly error?: string | null;
  /** Bytes of the whole error; absent unless `error` is only its beginning. */
  readonly error_cut?: number;
  /** What people call the step, if `[labels]` has a title for it. */
  readonly title?: string;
}

export type Level = "DEBUG" | "ERROR" | "INFO" | "WARN";

/** The log row of a job that was logged last. */
export interface LastMessage {
  readonly level: Level;
  readonly text: string;
  readonly at: string;
}

/**
 * `stated`: the job's error is or ends with that of the step. `inferred`: the last step that failed. `apart`: no
 * step has the job's error. `none`: no reason was logged.
 */
export type Certainty = "apart" | "inferred" | "none" | "stated";

/** Whether another job failed alike before; `unknown` while that is still being read, and without a reason. */
export type FailureState = "known" | "new" | "unknown";

/** Why a job failed, according to its rows. It never names a cause. */
export interface Failure {
  /** 12 hex digits, the same for jobs that failed alike; null if no reason was logged. */
  readonly fingerprint?: string | null;
  /** The name of the step that ended the job, if the rows say which. */
  readonly step?: string | null;
  readonly certainty: Certainty;
  /** The part of the error that says what failed, at most 200 characters. */
  readonly text: string;
  readonly state: FailureState;
}
// end

/** Later versions may add values. */
export type ForecastState = Forecast["state"];

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
   * accepted; it does not try again by itself. Of one subscription: the token does not open it, and others go on.
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
  /** False if lines may be missing from this page and those before it. */
  readonly complete: boolean;
  /** Why lines may be missing; null if the page is complete. */
  readonly reason: string | null;
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

/**
 * The `Correlator` that all parts of a page share: one for each server and token. Do not close it, but call `release` when
 * it is not used any more.
 */
export function acquire(options?: SharedOptions): { readonly correlator: Correlator; release(): void };

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

/** Types of client.js, the browser client of a correlator. Nothing here is needed to run it. */

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
  readonly context_id?: string | null;
  readonly parent_job_id?: string | null;
  readonly child_job_ids: readonly string[];
  readonly job_type?: string | null;
  readonly operation?: string | null;
  readonly category?: string | null;
  readonly owner?: string | null;
  readonly status: JobStatus;
  readonly terminal: boolean;
  readonly error?: string | null;
  readonly started_at?: string | null;
  readonly ended_at?: string | null;
  readonly updated_at: string;
  /** As of `updated_at`: of a running job, count on from `started_at`. */
  readonly duration_seconds?: number | null;
  readonly progress: Progress;
  readonly current_step?: string | null;
  /** By step id; order them by `seq`. */
  readonly steps: Readonly<Record<string, Step>>;
  /** Running, and silent for longer than the daemon's `jobs.stalled_after`. */
  readonly stalled: boolean;
  readonly last_event_at?: string | null;
  readonly last_message?: LastMessage | null;
  readonly warnings: number;
  readonly errors: number;
  readonly metadata: Readonly<Record<string, unknown>>;
  readonly source: "joblog" | "legacy";
  readonly rev: number;
}

export interface Progress {
  /** 0 to 100; 100 only of a completed job. */
  readonly percent: number;
  /** What `percent` rests on; more may come. */
  readonly basis: "reported" | "steps" | "legacy" | (string & {});
  readonly steps_done: number;
  readonly steps_failed: number;
  readonly steps_running: number;
  readonly steps_skipped: number;
  readonly steps_seen: number;
}

export interface Step {
  readonly seq: number;
  readonly name: string;
  readonly status: StepStatus;
  readonly started_at?: string | null;
  readonly ended_at?: string | null;
  readonly duration_seconds?: number | null;
  readonly error?: string | null;
}

export interface LastMessage {
  readonly level: Level;
  readonly text: string;
  readonly at?: string | null;
}

/** A filter: AND between its members, OR inside one. `{}` is every job in the daemon's memory. */
export interface Wanted {
  /** Any IDs: UUIDs, external IDs, context IDs, legacy IDs. Also such as do not exist yet. */
  jobs?: string[];
  status?: string[];
  job_type?: string[];
  context_id?: string[];
  /** The least level of log lines. They come only to an `onLog`. */
  logs?: Level;
}

/** What a subscription shows. Frozen; a new one whenever something changed. */
export interface Update {
  /** By job_id. Another Map whenever a job changed, and the very same Job wherever one did not. */
  readonly jobs: ReadonlyMap<string, Job>;
  /** The newest of `jobs` by `started_at`: what a subscription to one ID shows. */
  readonly job: Job | null;
  /** job_ids that came, changed or left since the last update. */
  readonly changed: ReadonlySet<string>;
  /** Wanted IDs that nobody knows yet. The daemon waits for them. */
  readonly unknown: readonly string[];
  /** The first snapshot is complete: what is not here is not there. */
  readonly synced: boolean;
  readonly connection: Connection;
}

/** How fresh what is shown is. Frozen; a new one whenever something changed. */
export interface Connection {
  /**
   * connecting: an attempt is under way. live. stale: nothing is heard, or the daemon does not reach its database.
   * offline: it will try again at `retry_at`. paused: the page is hidden. refused: the token or the origin is not
   * accepted; it does not try again by itself.
   */
  readonly state: "connecting" | "live" | "stale" | "offline" | "paused" | "refused";
  readonly transport: "websocket" | "sse" | "poll" | null;
  /** The daemon's database; null: not told, or not told yet. */
  readonly source: "live" | "stale" | "down" | null;
  readonly lag_seconds: number;
  /** Milliseconds since 1970. */
  readonly retry_at: number | null;
  /** What went wrong last; null once connected. */
  readonly error: string | null;
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

export interface Options {
  /** Base URL of the correlator. Default: where client.js was loaded from; in a bundle, say it. */
  url?: string | URL;
  /** A function is asked at every connection, and once more when its answer is refused. */
  token?: string | (() => string | Promise<string>);
  /** Default: all, in this order. */
  transports?: ("websocket" | "sse" | "poll")[];
  /** Default true: no connection while the page has been hidden for longer than 30 s. */
  pauseWhenHidden?: boolean;
  /** Instead of the global ones: for Node, and for tests. */
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
  /** The least level of log lines; without it, that of the filter, else INFO. */
  logs?: Level;
  /** Log lines as they come, by websocket and event stream. `dropped`: as many were lost before these. */
  onLog?: (lines: LogLine[], dropped: number) => void;
}

export interface Subscription {
  close(): void;
  /** The last one that `onChange` was given; before that, an empty one. */
  readonly update: Update;
}

/** One connection for all its subscriptions. */
export class Correlator {
  constructor(options?: Options);
  /** `onChange` is called soon, and then at most once in 16 ms whenever anything of the update changed. */
  subscribe(what: string | string[] | Wanted, onChange: (update: Update) => void, more?: More): Subscription;
  readonly connection: Connection;
  /** `callback` is called soon, and on every change. Returns how to stop it. */
  onConnection(callback: (connection: Connection) => void): () => void;
  close(): void;
}

/** `Correlator.subscribe` of one that all callers share, with default options. */
export function subscribe(
  what: string | string[] | Wanted,
  onChange: (update: Update) => void,
  more?: More,
): Subscription;

/** `target` with the JSON merge patch `patch` applied (RFC 7386): a new value; the arguments stay as they are. */
export function merge(target: unknown, patch: unknown): unknown;

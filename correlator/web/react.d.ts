/** Types of react.js, hooks for React 18 and later. Not needed at run time. */

import type { DetailedHTMLProps, HTMLAttributes, ReactElement, ReactNode } from "react";
import type { Level, LogLine, SharedOptions, Update, Wanted } from "./client.js";
import type { CorrelatorProgress } from "./progress.js";

/** The server of the hooks below it. Not needed behind a proxy that serves the correlator at the root of the page's origin. */
export function CorrelatorProvider(props: {
  /** Base URL of the correlator, such as "/correlator/". */
  server?: string;
  /** As `Options.token`. The last function that was given is called. */
  token?: SharedOptions["token"];
  children?: ReactNode;
}): ReactElement;

/**
 * One job by any of its IDs, also one that does not exist yet; null for none. On the server, and in the first render, the
 * update is empty.
 */
export function useJob(id: string | null): Update;

/** All jobs that match. Call it once for a list, and pass the jobs to its rows: each call is a subscription. */
export function useJobs(filter?: Wanted): Update;

/** The log of one job by any of its IDs: what the daemon's database has, and each new line. */
export function useJobLog(id: string | null, options?: JobLogOptions): JobLogState;

export interface JobLogOptions {
  /** The lowest level. Default: INFO. */
  level?: Level;
  /** The number of lines that are kept, the newest. Default: 1000. */
  limit?: number;
}

/** Frozen; each change creates a new one. */
export interface JobLogState {
  /** In the order of time, each once. */
  readonly lines: readonly LogLine[];
  /** Number of older lines that are not kept. */
  readonly older: number;
  /** True once the history has been read. */
  readonly loaded: boolean;
  /** Why lines are missing; it retries by itself. */
  readonly error: string | null;
}

declare module "react" {
  namespace JSX {
    interface IntrinsicElements {
      /** The element of progress.js. Its events are React properties from React 19 on. */
      "correlator-progress": DetailedHTMLProps<HTMLAttributes<CorrelatorProgress>, CorrelatorProgress> & {
        job: string;
        server?: string;
        token?: SharedOptions["token"];
        label?: string;
        onchange?: (event: CustomEvent<Update>) => void;
        onend?: (event: CustomEvent<Update>) => void;
      };
    }
  }
}

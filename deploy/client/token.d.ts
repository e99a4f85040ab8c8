/** Types of token.js. Not needed at run time. */

/** What a token opens: one job, by any ID that it has or will have; or the jobs of a virtual machine. */
export type JobTokenOptions = ({ job: string; vm?: undefined } | { vm: string; job?: undefined }) & {
  /** Seconds for which it is valid, 900 by default. The daemon accepts at most `http.job_token_max`. */
  expiresIn?: number;
  /** The appliance (`cluster.instance`), if the token is for just one. */
  instance?: string;
  /** Unix seconds; the current time by default. */
  now?: number;
};

/**
 * Makes a token that shows one job, or the jobs of one virtual machine, and nothing else.
 *
 * For the backend of a GUI (Node.js 20, Deno, Bun, workers): in a page it throws. `key`: the content of
 * `http.job_token_key_file`, of at least 32 characters, without the end of the line.
 *
 * @throws TypeError if the key is too short, or what is given names no job and no machine.
 */
export function createJobToken(key: string, options: JobTokenOptions): Promise<string>;

/** The messages of a frame or an event. */

import { isObject } from "./documents.js";
import { closeReason } from "./requests.js";
import { CloseCode } from "./retry.js";

/**
 * Passes on the messages of one frame or event, which holds one message or an array of them.
 * @param {string} text
 * @param {(message: any) => void} receive
 * @param {(code: number, reason: string) => void} end  called if a message is invalid
 */
export function decode(text, receive, end) {
  try {
    for (const message of [JSON.parse(text)].flat()) if (isObject(message)) receive(message);
  } catch (error) {
    end(CloseCode.NONE, `a message is invalid: ${closeReason(error)[1]}`);
  }
}

/** Tokens for one job, for the backend of a GUI: whoever has the key makes them, and asks the correlator nothing. */

const MIN_KEY = 32;
const MAX_ID = 255;

/**
 * @param {string} key
 * @param {{job?: string, vm?: string, expiresIn?: number, instance?: string, now?: number}} options
 * @returns {Promise<string>}
 */
export async function createJobToken(key, { job, vm, expiresIn = 900, instance, now = Date.now() / 1000 }) {
  if (typeof document !== "undefined") throw new Error("createJobToken is for a server: a page must not have the key");
  const id = job ?? vm;
  if (typeof key !== "string" || key.length < MIN_KEY) throw new TypeError(`the key needs ${MIN_KEY} characters`);
  if (typeof id !== "string" || (job !== undefined && vm !== undefined)) throw new TypeError("give either job or vm");
  if (id === "" || [...id].length > MAX_ID) throw new TypeError(`an ID has 1 to ${MAX_ID} characters`);
  if (!id.isWellFormed()) throw new TypeError("the ID is no text in Unicode");
  if (!(expiresIn >= 1)) throw new TypeError("expiresIn: expected at least 1 second");
  const iat = Math.floor(now);
  const claims = { v: 1, job, vm, aud: instance || undefined, iat, exp: iat + Math.floor(expiresIn) };
  const signed = `${encoded({ alg: "HS256", typ: "JWT" })}.${encoded(claims)}`;
  const bytes = new TextEncoder();
  const hmac = { name: "HMAC", hash: "SHA-256" };
  const secret = await crypto.subtle.importKey("raw", bytes.encode(key), hmac, false, ["sign"]);
  return `${signed}.${base64(new Uint8Array(await crypto.subtle.sign("HMAC", secret, bytes.encode(signed))))}`;
}

/** @param {object} value */
function encoded(value) {
  return base64(new TextEncoder().encode(JSON.stringify(value)));
}

/** @param {Uint8Array} bytes */
function base64(bytes) {
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

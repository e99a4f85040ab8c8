/**
 * Where this page is served from. A gateway serves itself at `/`, and one appliance each at `/i/<instance>/`; a proxy
 * may put a path before that.
 */

const OWN = /^(.*\/)i\/([\w-]{1,64})\/$/;

/** `base` ends with a slash. `root` is the fleet's; `instance` the appliance that `base` is restricted to, or "". */
export function placeOf(base) {
  const [, path = ".", instance = ""] = OWN.exec(base.pathname) ?? [];
  return { base, root: new URL(path, base), instance };
}

export const HERE = placeOf(new URL("..", import.meta.url));

/** The base of the API for one appliance; "" is what this page is served from. */
export function baseOf(instance, here = HERE) {
  return instance === "" ? here.base : new URL(`i/${instance}/`, here.root);
}

/** True if the server has said in its page that it is a gateway. */
export function isGateway() {
  return globalThis.document?.documentElement.dataset.fleet !== undefined;
}

/** Requests of the page to the REST API: JSON with the token, and links that need one. */

/**
 * GET a JSON body.
 *
 * @throws Error with a text for the user, if the daemon answers with another status.
 */
export async function fetchJson(session, address, signal) {
  const response = await fetch(address, { headers: session.headers, signal });
  if (!response.ok) {
    const problem = await response.json().catch(() => ({}));
    throw new Error(problem.detail ?? `the daemon answered with HTTP status ${response.status}`);
  }
  return response.json();
}

/** The attributes of a link to the REST API. A link sends no token: if one is needed, a ticket is fetched for a click. */
export function withTicket(session, address) {
  if (Object.keys(session.headers).length === 0) {
    return { href: address.href };
  }
  return {
    href: address.href,
    onClick: async (event) => {
      event.preventDefault();
      const response = await fetch(session.api("ticket"), { method: "POST", headers: session.headers });
      if (response.ok) {
        address.searchParams.set("ticket", (await response.json()).ticket);
        location.assign(address);
      }
    },
  };
}

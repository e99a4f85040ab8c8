// Serves a folder as far as Vite's server for development does what docs/gui.md relies on: it passes on the paths of
// `server.proxy` in its configuration, with the Host of the browser, and it resolves the imports of scripts in a page
// itself, where a path without a file in the folder is an error.
//
// node vite.mjs CONFIGURATION FOLDER PORT

import { existsSync, readFileSync } from "node:fs";
import http from "node:http";
import { join } from "node:path";

const [configuration, folder, port] = process.argv.slice(2);
const { proxy } = (await import(configuration)).default.server;
const KINDS = { html: "text/html", js: "text/javascript" };

function forwarded(request) {
  const found = Object.entries(proxy).find(([prefix]) => request.url.startsWith(prefix));
  if (found === undefined) return null;
  const { target, rewrite, changeOrigin = false, ws = false } = found[1];
  const { hostname, port, host } = new URL(target);
  const headers = changeOrigin ? { ...request.headers, host } : request.headers;
  const path = rewrite?.(request.url) ?? request.url;
  return { ws, options: { hostname, port, path, method: request.method, headers } };
}

function resolved(name) {
  if (!/^[./]/.test(name)) {
    const about = JSON.parse(readFileSync(join(folder, "node_modules", name, "package.json")));
    return `/${join("node_modules", name, about.exports["."].default)}`;
  }
  if (!existsSync(join(folder, name))) throw new Error(`Failed to resolve import ${name}`);
  return name;
}

const server = http.createServer((request, response) => {
  const to = forwarded(request);
  if (to !== null) {
    const asked = http.request(to.options, (answer) => {
      response.writeHead(answer.statusCode, answer.headers);
      answer.pipe(response);
    });
    asked.on("error", () => response.destroy());
    request.pipe(asked);
    return;
  }
  try {
    let text = readFileSync(join(folder, request.url), "utf-8");
    if (request.url.endsWith(".html")) text = text.replace(/(?<= from ")[^"]+/g, resolved);
    response.writeHead(200, { "Content-Type": KINDS[request.url.split(".").at(-1)] }).end(text);
  } catch (error) {
    response.writeHead(500).end(String(error));
  }
});

server.on("upgrade", (request, socket) => {
  const to = forwarded(request);
  if (!to?.ws) return socket.destroy();
  const asked = http.request(to.options);
  asked.on("error", () => socket.destroy());
  asked.on("upgrade", (answer, upstream, first) => {
    const head = [`HTTP/1.1 101 ${answer.statusMessage}`];
    for (let at = 0; at < answer.rawHeaders.length; at += 2) head.push(answer.rawHeaders.slice(at, at + 2).join(": "));
    socket.write(`${head.join("\r\n")}\r\n\r\n`);
    upstream.unshift(first);
    upstream.pipe(socket).pipe(upstream);
    for (const [one, other] of [[socket, upstream], [upstream, socket]]) one.on("error", () => other.destroy());
  });
  asked.end();
});

server.listen(Number(port), "127.0.0.1");

/**
 * An image's HEALTHCHECK: `node healthcheck.mjs VARIABLE PATH` asks this container's own server for PATH, at the port that
 * VARIABLE names. 0: answered with 2xx; 1: anything else, with the reason on standard error.
 */
const [variable, path] = process.argv.slice(2);
const port = /:(\d+)$/.exec(process.env[variable] ?? "")?.[1];

try {
  if (port === undefined) throw new Error(`${variable} names no port`);
  const tls = variable === "ATELIER_LISTEN" && process.env["ATELIER_TLS_CERT"] !== undefined;
  // The certificate is for the name that callers use, which is not this container's loopback address.
  if (tls) process.env["NODE_TLS_REJECT_UNAUTHORIZED"] = "0";
  const url = `${tls ? "https" : "http"}://127.0.0.1:${port}${path}`;
  const reply = await fetch(url, { signal: AbortSignal.timeout(4_000) });
  if (!reply.ok) throw new Error(`${url} answered ${reply.status}`);
} catch (error) {
  console.error(error.cause?.message ?? error.message);
  process.exit(1);
}

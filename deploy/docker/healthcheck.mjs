/**
 * An image's HEALTHCHECK: `node healthcheck.mjs VARIABLE PATH [CERTIFICATE]` asks this container's own server for PATH, at
 * the port that VARIABLE names; by TLS where the variable CERTIFICATE is set. 0: answered with 2xx; 1: anything else, with
 * the reason on standard error.
 */
const [variable, path, certificate = ""] = process.argv.slice(2);
const port = /:(\d+)$/.exec(process.env[variable] ?? "")?.[1];
const tls = (process.env[certificate] ?? "") !== "";

try {
  if (port === undefined) throw new Error(`${variable} names no port`);
  // The certificate is for the name that callers use, which is not this container's loopback address.
  if (tls) process.env["NODE_TLS_REJECT_UNAUTHORIZED"] = "0";
  const url = `${tls ? "https" : "http"}://127.0.0.1:${port}${path}`;
  const reply = await fetch(url, { signal: AbortSignal.timeout(4_000) });
  if (!reply.ok) throw new Error(`${url} answered ${reply.status}`);
} catch (error) {
  console.error(error.cause?.message ?? error.message);
  process.exit(1);
}

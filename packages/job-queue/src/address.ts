/** Where a queue is. */
export type QueueAddress =
  | { readonly kind: "sqlite"; readonly path: string }
  | {
      readonly kind: "nats";
      /** host:port of every server named. */
      readonly servers: readonly string[];
      readonly tls: boolean;
      readonly credentials: { readonly user: string; readonly password: string } | undefined;
    };

/**
 * `sqlite:/folder/queue.db`, or `nats://host:port` with further servers after commas; `tls://` in place of `nats://`, and
 * `user:password@` before the first host.
 *
 * @throws RangeError that says what is wrong, without the password.
 */
export function parseQueueAddress(text: string): QueueAddress {
  if (text.startsWith("sqlite:")) return { kind: "sqlite", path: filePath(text.slice("sqlite:".length)) };
  const scheme = /^(nats|tls):\/\//.exec(text)?.[1];
  if (scheme === undefined) {
    throw new RangeError(
      `should be sqlite:/folder/queue.db or nats://host:port, begins ${JSON.stringify(text.slice(0, 12))}`,
    );
  }
  const urls = text.split(",").map((part) => serverUrl(part.trim(), scheme));
  const { username, password } = urls[0]!;
  return {
    kind: "nats",
    servers: urls.map(({ host, port }) => (port === "" ? `${host}:4222` : host)),
    tls: scheme === "tls",
    credentials:
      username === "" ? undefined : { user: decodeURIComponent(username), password: decodeURIComponent(password) },
  };
}

function filePath(path: string): string {
  if (!path.startsWith("/"))
    throw new RangeError(`the file of sqlite: needs its whole path, got ${JSON.stringify(path)}`);
  if (path.endsWith("/")) throw new RangeError(`sqlite: names a file, ${JSON.stringify(path)} is a folder`);
  return path;
}

function serverUrl(text: string, scheme: string): URL {
  const withScheme = text.includes("://") ? text : `${scheme}://${text}`;
  const shown = withScheme.replace(/\/\/[^@/]*@/, "//...@");
  if (!withScheme.startsWith(`${scheme}://`))
    throw new RangeError(`${shown} should be ${scheme}:// as the first server is`);
  const url = URL.parse(withScheme);
  if (url === null || url.hostname === "" || !["", "/"].includes(url.pathname) || url.search !== "") {
    throw new RangeError(`${shown} should be ${scheme}://host:port`);
  }
  return url;
}

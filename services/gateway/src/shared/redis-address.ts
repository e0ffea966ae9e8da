/** Where Redis is and how to speak to it, as ATELIER_REDIS says. */
export interface RedisAddress {
  readonly kind: "single" | "cluster" | "sentinel";
  /** One for `single`; some of the cluster's nodes; the sentinels. */
  readonly nodes: readonly RedisNode[];
  readonly tls: boolean;
  readonly username: string | undefined;
  /** Never logged. */
  readonly password: string | undefined;
  /** The database's number; 0 in a cluster. */
  readonly database: number;
  /** What the sentinels call the group. */
  readonly masterName: string | undefined;
}

export interface RedisNode {
  readonly host: string;
  readonly port: number;
}

const DEFAULT_PORTS = { single: 6379, cluster: 6379, sentinel: 26_379 } as const;

const FORMS =
  "redis://host:6379/0, redis-cluster://host:6379,host:6380 or redis-sentinel://host:26379,host:26380/name, " +
  "with rediss for TLS and user:password@ before the host";

/**
 * `text` as an address. The scheme's `rediss` stands for TLS, in all three forms; a user and a password come before the
 * first host, percent-encoded.
 *
 * @throws RangeError saying what is wrong with it, without its password.
 */
export function parseRedisAddress(text: string): RedisAddress {
  const match = /^redis(s?)(?:-(cluster|sentinel))?:\/\/(?:(.*)@)?([^/@]+)(?:\/(.*))?$/.exec(text);
  if (match === null) throw new RangeError(`must be ${FORMS}`);
  const [, secure, form, credentials, hosts, path = ""] = match;
  const kind = (form ?? "single") as RedisAddress["kind"];
  const nodes = hosts!.split(",").map((host) => parseNode(host, DEFAULT_PORTS[kind]));
  if (kind === "single" && nodes.length > 1) throw new RangeError(`several hosts need a form of their own: ${FORMS}`);
  return {
    kind,
    nodes,
    tls: secure === "s",
    ...parseCredentials(credentials),
    database: kind === "single" ? parseDatabase(path) : 0,
    masterName: kind === "sentinel" ? parseMasterName(path) : undefined,
    ...(kind === "cluster" ? refusePath(path) : {}),
  };
}

/** For people and logs: without user and password. */
export function describeRedis({ kind, nodes, tls, database, masterName }: RedisAddress): string {
  const scheme = `redis${tls ? "s" : ""}${kind === "single" ? "" : `-${kind}`}`;
  const hosts = nodes.map(({ host, port }) => `${host.includes(":") ? `[${host}]` : host}:${port}`).join(",");
  const path = masterName !== undefined ? `/${masterName}` : database > 0 ? `/${database}` : "";
  return `${scheme}://${hosts}${path}`;
}

function parseNode(text: string, defaultPort: number): RedisNode {
  const match = /^(?:\[([0-9a-f:.]+)\]|([^\s:[\]?#]+))(?::(\d{1,5}))?$/i.exec(text.trim());
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3] ?? defaultPort);
  if (host === undefined || port < 1 || port > 65_535) {
    throw new RangeError(`${JSON.stringify(text)} is not a host or host:port; it must be ${FORMS}`);
  }
  return { host, port };
}

function parseCredentials(text: string | undefined): Pick<RedisAddress, "username" | "password"> {
  if (text === undefined || text === "") return { username: undefined, password: undefined };
  const colon = text.indexOf(":");
  if (colon < 0) throw new RangeError("a password stands after a colon: redis://:password@host or user:password@host");
  const username = decode(text.slice(0, colon));
  return { username: username === "" ? undefined : username, password: decode(text.slice(colon + 1)) };
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw new RangeError("its user or password is not percent-encoded as a URL's must be (% is %25, @ is %40)");
  }
}

function parseDatabase(path: string): number {
  if (path === "") return 0;
  if (!/^\d{1,4}$/.test(path)) throw new RangeError(`the database ${JSON.stringify(path)} is not a number`);
  return Number(path);
}

function parseMasterName(path: string): string {
  if (path === "" || path.includes("/")) {
    throw new RangeError("a sentinel address ends in the group's name: redis-sentinel://host:26379/name");
  }
  return path;
}

function refusePath(path: string): Record<never, never> {
  if (path !== "") throw new RangeError(`a cluster has one database, and ${JSON.stringify(path)} names another`);
  return {};
}

import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Redis } from "ioredis";
import { type Program, redisServer } from "../../scripts/services/programs.ts";
import { type CertificateFiles, TestAuthority, writeCertificate } from "./certificates.ts";
import { ChildProgram } from "./child-program.ts";
import { freePorts } from "./free-ports.ts";

export interface RedisOptions {
  /** Further arguments, as `["--maxmemory", "2mb"]`. */
  readonly args?: readonly string[];
  readonly password?: string;
  /** Speaks TLS only, and asks callers for a certificate; of this authority, where one is given. */
  readonly tls?: boolean | TestAuthority;
}

/**
 * One redis-server process on a free port of loopback, which ends with this process at the latest. It keeps nothing
 * on disk.
 */
export async function startRedis(options: RedisOptions = {}): Promise<RedisProcess> {
  const [port] = await freePorts(1);
  const redis = new RedisProcess(await redisServer(), port!, options);
  await redis.start();
  return redis;
}

export class RedisProcess {
  readonly port: number;
  readonly #program: Program;
  readonly #options: RedisOptions;
  #child: ChildProgram | undefined;
  #folder: string | undefined;
  #client: Redis | undefined;
  #files: CertificateFiles | undefined;
  readonly #authority: TestAuthority;

  constructor(program: Program, port: number, options: RedisOptions) {
    this.#program = program;
    this.port = port;
    this.#options = options;
    this.#authority = options.tls instanceof TestAuthority ? options.tls : new TestAuthority();
  }

  /** As ATELIER_REDIS takes it. */
  get url(): string {
    const { password, tls } = this.#options;
    const credentials = password === undefined ? "" : `:${encodeURIComponent(password)}@`;
    return `redis${tls ? "s" : ""}://${credentials}127.0.0.1:${this.port}`;
  }

  /** What a caller of a server with TLS needs. */
  get files(): CertificateFiles {
    return present(this.#files);
  }

  /** A connection for the test's own questions. */
  get client(): Redis {
    return present(this.#client);
  }

  /** Starts it (again), empty, and resolves when it answers. */
  async start(): Promise<void> {
    this.#folder = await mkdtemp(join(tmpdir(), "atelier-redis-"));
    const { args = [], password, tls } = this.#options;
    if (tls) this.#files = writeCertificate(this.#folder, "redis", this.#authority);
    this.#child = new ChildProgram(
      this.#program,
      [
        ...["--bind", "127.0.0.1", "--save", "", "--dir", this.#folder],
        ...(tls ? ["--port", "0", "--tls-port", String(this.port), ...tlsArguments(this.files)] : []),
        ...(tls ? [] : ["--port", String(this.port)]),
        ...(password === undefined ? [] : ["--requirepass", password]),
        ...args,
      ],
      { cwd: this.#folder },
    );
    const client = connectTo(this.port, password, tls ? this.#authority : undefined);
    this.#client = client;
    await this.#child.until(async () => client.status === "ready", "redis-server answers");
  }

  /** Stands still: connections stay open and no answer comes. */
  pause(): void {
    this.#child?.pause();
  }

  resume(): void {
    this.#child?.resume();
  }

  /** Kills it. What it held is gone. */
  async stop(): Promise<void> {
    this.#client?.disconnect();
    this.#client = undefined;
    await this.#child?.kill();
    this.#child = undefined;
    if (this.#folder !== undefined) await rm(this.#folder, { recursive: true, force: true });
    this.#folder = undefined;
  }

  /** Resolves when `condition` holds of it. */
  until(condition: () => Promise<boolean>, what: string): Promise<void> {
    return present(this.#child).until(condition, what);
  }
}

/** Several processes that stand for one Redis. */
export interface RedisGroup {
  /** As ATELIER_REDIS takes it. */
  readonly url: string;
  readonly nodes: readonly RedisProcess[];
  /** What a caller of servers with TLS needs. */
  readonly files: CertificateFiles;
  /** Kills the master of `key` (any, where sentinels watch) and resolves when a replica has taken its place. */
  failOver(key: string): Promise<void>;
  stop(): Promise<void>;
}

export interface RedisGroupOptions {
  /** Between all of them, and with callers. */
  readonly tls?: boolean;
}

const REPLICATION = ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"];

/** Three masters and a replica of each. */
export async function startRedisCluster({ tls = false }: RedisGroupOptions = {}): Promise<RedisGroup> {
  const program = await redisServer();
  const security = tls ? { tls: new TestAuthority() } : {};
  const secured = tls ? ["--tls-cluster", "yes", "--tls-replication", "yes"] : [];
  const ports = await freePorts(12);
  const nodes = ports.slice(0, 6).map((port, i) => {
    const args = ["--cluster-enabled", "yes", "--cluster-port", String(ports[6 + i]), "--cluster-node-timeout", "1000"];
    const partly = ["--cluster-require-full-coverage", "no"]; // one lost master takes only its own keys along
    return new RedisProcess(program, port, { ...security, args: [...args, ...partly, ...secured, ...REPLICATION] });
  });
  const masters = nodes.slice(0, 3);
  await Promise.all(nodes.map((node) => node.start()));
  await Promise.all(
    masters.map((master, i) => {
      const [first, last] = [Math.ceil((i * 16_384) / 3), Math.ceil(((i + 1) * 16_384) / 3) - 1];
      return master.client.call("CLUSTER", "ADDSLOTSRANGE", first, last);
    }),
  );
  for (const [i, node] of nodes.entries()) {
    await node.client.call("CLUSTER", "SET-CONFIG-EPOCH", i + 1);
    if (i > 0) await nodes[0]!.client.call("CLUSTER", "MEET", "127.0.0.1", node.port, ports[6 + i]!);
  }
  const knows = async (node: RedisProcess) =>
    String(await node.client.cluster("INFO")).includes("cluster_known_nodes:6");
  await Promise.all(nodes.map((node) => node.until(() => knows(node), "the nodes know each other")));
  for (const [i, master] of masters.entries()) {
    const replica = nodes[3 + i]!;
    const id = String(await master.client.cluster("MYID"));
    await replica.until(async () => String(await replica.client.cluster("NODES")).includes(id), "it knows its master");
    await replica.client.cluster("REPLICATE", id);
  }
  const linked = async (node: RedisProcess) => (await node.client.info("replication")).includes("link_status:up");
  const settled = async (node: RedisProcess) => String(await node.client.cluster("INFO")).includes("cluster_state:ok");
  await Promise.all(nodes.slice(3).map((node) => node.until(() => linked(node), "it follows its master")));
  await Promise.all(nodes.map((node) => node.until(() => settled(node), "the cluster is whole")));

  return {
    url: `redis${tls ? "s" : ""}-cluster://${masters.map(({ port }) => `127.0.0.1:${port}`).join(",")}`,
    nodes,
    get files() {
      return nodes[0]!.files;
    },
    failOver: async (key) => {
      const slot = Number(await nodes[0]!.client.cluster("KEYSLOT", key));
      const lost = Math.floor((slot * 3) / 16_384);
      await masters[lost]!.stop();
      const replica = nodes[3 + lost]!;
      await replica.until(() => isMaster(replica), "the replica takes over");
      await replica.until(() => settled(replica), "the cluster is whole again");
    },
    stop: async () => {
      await Promise.all(nodes.map((node) => node.stop()));
    },
  };
}

/** A master, its replica, and three sentinels that watch them. */
export async function startRedisSentinels({ tls = false }: RedisGroupOptions = {}): Promise<RedisGroup> {
  const program = await redisServer();
  const authority = tls ? new TestAuthority() : undefined;
  const security = authority === undefined ? {} : { tls: authority };
  const secured = tls ? ["--tls-replication", "yes"] : [];
  const ports = await freePorts(5);
  const master = new RedisProcess(program, ports[0]!, { ...security, args: [...secured, ...REPLICATION] });
  const replica = new RedisProcess(program, ports[1]!, {
    ...security,
    args: ["--replicaof", "127.0.0.1", String(master.port), ...secured, ...REPLICATION],
  });
  await master.start();
  await replica.start();
  await replica.until(
    async () => (await replica.client.info("replication")).includes("master_link_status:up"),
    "it follows its master",
  );
  const sentinels = ports.slice(2).map((port) => {
    return new RedisSentinel(program, port, authority, [
      `sentinel monitor ${GROUP} 127.0.0.1 ${master.port} 2`,
      `sentinel down-after-milliseconds ${GROUP} 500`,
      `sentinel failover-timeout ${GROUP} 3000`,
    ]);
  });
  await Promise.all(sentinels.map((sentinel) => sentinel.start()));
  await Promise.all(sentinels.map((sentinel) => sentinel.untilItKnows({ replicas: 1, sentinels: 2 })));

  return {
    url: `redis${tls ? "s" : ""}-sentinel://${ports
      .slice(2)
      .map((port) => `127.0.0.1:${port}`)
      .join(",")}/${GROUP}`,
    nodes: [master, replica],
    get files() {
      return master.files;
    },
    failOver: async () => {
      await master.stop();
      await replica.until(() => isMaster(replica), "the replica takes over");
    },
    stop: async () => {
      await Promise.all([...sentinels, replica, master].map((process) => process.stop()));
    },
  };
}

const GROUP = "main";

/** A sentinel keeps what it learns in its configuration file. */
class RedisSentinel {
  readonly #program: Program;
  readonly #port: number;
  readonly #authority: TestAuthority | undefined;
  readonly #settings: readonly string[];
  #child: ChildProgram | undefined;
  #folder: string | undefined;
  #client: Redis | undefined;

  constructor(program: Program, port: number, authority: TestAuthority | undefined, settings: readonly string[]) {
    this.#program = program;
    this.#port = port;
    this.#authority = authority;
    this.#settings = settings;
  }

  async start(): Promise<void> {
    this.#folder = await mkdtemp(join(tmpdir(), "atelier-sentinel-"));
    const file = join(this.#folder, "sentinel.conf");
    const tls = this.#authority && tlsArguments(writeCertificate(this.#folder, "sentinel", this.#authority));
    const secured = [`port 0`, `tls-port ${this.#port}`, "tls-replication yes", ...configLines(tls ?? [])];
    const ports = tls === undefined ? [`port ${this.#port}`] : secured;
    const lines = ["bind 127.0.0.1", ...ports, `dir ${this.#folder}`, ...this.#settings];
    await writeFile(file, `${lines.join("\n")}\n`);
    this.#child = new ChildProgram(this.#program, [file, "--sentinel"], { cwd: this.#folder });
    const client = connectTo(this.#port, undefined, this.#authority);
    this.#client = client;
    await this.#child.until(async () => client.status === "ready", "the sentinel answers");
  }

  async untilItKnows({ replicas, sentinels }: { replicas: number; sentinels: number }): Promise<void> {
    await present(this.#child).until(async () => {
      const reply = (await present(this.#client).call("SENTINEL", "MASTER", GROUP)) as string[];
      const value = (name: string) => Number(reply[reply.indexOf(name) + 1]);
      return value("num-slaves") === replicas && value("num-other-sentinels") === sentinels;
    }, "the sentinel knows the group");
  }

  async stop(): Promise<void> {
    this.#client?.disconnect();
    await this.#child?.kill();
    if (this.#folder !== undefined) await rm(this.#folder, { recursive: true, force: true });
  }
}

async function isMaster(node: RedisProcess): Promise<boolean> {
  return (await node.client.info("replication")).includes("role:master");
}

function connectTo(port: number, password: string | undefined, authority: TestAuthority | undefined): Redis {
  const client = new Redis({
    host: "127.0.0.1",
    port,
    retryStrategy: () => 20,
    maxRetriesPerRequest: null,
    ...(password === undefined ? {} : { password }),
    ...(authority === undefined ? {} : { tls: { ca: authority.cert, ...authority.issue("test") } }),
  });
  client.on("error", () => {}); // until it listens; afterwards its commands say so
  return client;
}

function tlsArguments({ ca, cert, key }: CertificateFiles): string[] {
  return ["--tls-ca-cert-file", ca, "--tls-cert-file", cert, "--tls-key-file", key, "--tls-auth-clients", "yes"];
}

/** `["--name", "value"]` as lines of a configuration file. */
function configLines(args: readonly string[]): string[] {
  return args.flatMap((name, i) => (i % 2 === 0 ? [`${name.slice(2)} ${args[i + 1]}`] : []));
}

function present<T>(value: T | undefined): T {
  if (value === undefined) throw new Error("this process is stopped");
  return value;
}

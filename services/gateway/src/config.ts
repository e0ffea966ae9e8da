import { fromEnv, readConfig } from "@atelier/core";
import type { TlsFileNames } from "@atelier/rpc";
import { buildVariables, type LOG_LEVELS, type LogPrompts, telemetryVariables } from "@atelier/telemetry";
import { z } from "zod";
import { APPROXIMATE_MODES, type ApproximateMode } from "./approximate/approximate-cache.ts";
import { CACHE_SCOPES } from "./cache/cache-key.ts";
import type { CacheRules } from "./cache/exact-cache.ts";
import {
  checkJobs,
  checkOrigins,
  checkTlsFiles,
  serviceUrl,
  tlsFiles,
  type WorkerTlsConfig,
  workerTls,
} from "./edge-config.ts";
import { parseRedisAddress, type RedisAddress } from "./shared/redis-address.ts";
import type { RedisConfig } from "./shared/redis-link.ts";
import type { Tariff } from "./tenants/tariff.ts";

export interface GatewayConfig {
  readonly listen: HostPort;
  /** Where the gRPC API listens; undefined: nowhere. */
  readonly grpcListen: HostPort | undefined;
  /** Workers' gRPC addresses: host:port, or dns:///name:port for all the addresses of a name. */
  readonly workers: readonly string[];
  /** From the request's arrival to its answer; carried to the worker as the call's deadline. */
  readonly requestTimeoutMs: number;
  /** How long a stopping gateway waits for what is in flight. */
  readonly drainTimeoutMs: number;
  readonly bodyMaxBytes: number;
  /** How long a caller may take to send its headers and body. */
  readonly receiveTimeoutMs: number;
  /** Callers' connections; more are closed as they come. */
  readonly connectionsMax: number;
  /** Undefined: plain HTTP. */
  readonly tls: TlsFileNames | undefined;
  /** Undefined: workers are spoken to in clear. */
  readonly workerTls: WorkerTlsConfig | undefined;
  /** Whose pages may call from a browser; empty: none. */
  readonly corsOrigins: readonly string[];
  /** Other names of models; undefined: of the first that a caller may use. */
  readonly modelAliases: ReadonlyMap<string, string | undefined>;
  /** Generations at once; beyond it they are refused, since nothing here queues. */
  readonly inFlightMax: number;
  /** Undefined: this gateway keeps for itself what gateways would share. */
  readonly redis: RedisConfig | undefined;
  /** How long a generation in the background is kept once it has ended. */
  readonly generationsKeptMs: number;
  /** Undefined: everything is made anew. */
  readonly cache: CacheConfig | undefined;
  /** Undefined: every picture begins from noise. */
  readonly approximate: ApproximateConfig | undefined;
  /** How soon the other gateways may take over what a gateway that died was at. */
  readonly leaseMs: number;
  /** Base URL of the jobs service; undefined: there are no bulk jobs. */
  readonly jobs: string | undefined;
  /** What services of ours show each other; undefined: they share this machine. */
  readonly internalToken: string | undefined;
  readonly admission: AdmissionConfig;
  readonly dispatch: DispatchConfig;
  readonly logLevel: (typeof LOG_LEVELS)[number];
  readonly logPrompts: LogPrompts;
  /** Of the source that was built; undefined: not known. */
  readonly revision: string | undefined;
  readonly tenancy: TenancyConfig;
}

export interface CacheConfig extends CacheRules {
  /** What results may take in this process, and in Redis. 0: none. */
  readonly memoryBytesMax: number;
  readonly redisBytesMax: number;
  /** What "of late" is. */
  readonly askWindowMs: number;
}

export interface ApproximateConfig {
  readonly mode: ApproximateMode;
  /** Of latents, in Redis or else in this process. */
  readonly bytesMax: number;
  readonly ttlMs: number;
}

export interface TenancyConfig {
  /** JSON of keys and tenants; undefined: none. */
  readonly keysFile: string | undefined;
  readonly keys: string | undefined;
  /** Callers beyond this machine need no key while there is none. */
  readonly anonymousAllowed: boolean;
  /** Folder of what an embedded gateway keeps; undefined: in memory. */
  readonly dataDir: string | undefined;
  readonly tariff: Tariff;
}

/** How hard a request is tried before its failure is the caller's. */
export interface DispatchConfig {
  readonly attemptsMax: number;
  /** Of the requests, in the long run. */
  readonly retryShare: number;
  readonly retryWaitMs: number;
  readonly stallMs: number;
  /** Undefined: by size and steps; 0: none. */
  readonly checkpointEvery: number | undefined;
  readonly checkpointBytesMax: number;
  readonly hedge: "off" | "learned" | number;
}

/** What is let in. */
export interface AdmissionConfig {
  /** Milliseconds of work that may lie before a request. */
  readonly waitMaxMs: number;
  /** Predicted wait from which requests are made with less; undefined: never. */
  readonly brownOutAfterMs: number | undefined;
}

export interface HostPort {
  readonly host: string;
  readonly port: number;
}

/** @throws ConfigError naming every bad variable at once. */
export function readGatewayConfig(env: Record<string, string | undefined>): GatewayConfig {
  const read = readConfig(gatewayEnvironment, env);
  return Object.freeze({
    listen: read.ATELIER_LISTEN,
    grpcListen: read.ATELIER_GRPC_LISTEN,
    workers: read.ATELIER_WORKERS,
    requestTimeoutMs: read.ATELIER_REQUEST_TIMEOUT_MS,
    drainTimeoutMs: read.ATELIER_DRAIN_TIMEOUT_MS ?? Math.min(DRAIN_TIMEOUT_MS, read.ATELIER_REQUEST_TIMEOUT_MS),
    bodyMaxBytes: read.ATELIER_BODY_MAX_BYTES,
    receiveTimeoutMs: read.ATELIER_RECEIVE_TIMEOUT_MS,
    connectionsMax: read.ATELIER_CONNECTIONS_MAX,
    tls: tlsFiles(read, { cert: "ATELIER_TLS_CERT", key: "ATELIER_TLS_KEY" }),
    workerTls: workerTls(read),
    corsOrigins: read.ATELIER_CORS_ORIGINS,
    modelAliases: read.ATELIER_MODEL_ALIASES,
    inFlightMax: read.ATELIER_IN_FLIGHT_MAX,
    redis: read.ATELIER_REDIS && {
      address: read.ATELIER_REDIS,
      tls: { ca: read.ATELIER_REDIS_CA, cert: read.ATELIER_REDIS_CERT, key: read.ATELIER_REDIS_KEY },
      prefix: read.ATELIER_REDIS_PREFIX,
      timeoutMs: read.ATELIER_REDIS_TIMEOUT_MS,
    },
    generationsKeptMs: read.ATELIER_GENERATIONS_KEPT_MS,
    cache:
      read.ATELIER_CACHE_SCOPE !== "off"
        ? Object.freeze({
            scope: read.ATELIER_CACHE_SCOPE,
            ttlMs: read.ATELIER_CACHE_TTL_MS,
            memoryBytesMax: read.ATELIER_CACHE_MEMORY,
            redisBytesMax: read.ATELIER_CACHE_REDIS_MEMORY,
            variants: read.ATELIER_CACHE_VARIANTS,
            minAsks: read.ATELIER_CACHE_MIN_ASKS,
            askWindowMs: read.ATELIER_CACHE_ASK_WINDOW_MS,
            leaseMs: Math.min(read.ATELIER_LEASE_MS, FLIGHT_LEASE_MS_MAX),
          })
        : undefined,
    approximate:
      read.ATELIER_APPROXIMATE !== "off" && read.ATELIER_CACHE_SCOPE !== "off" && read.ATELIER_APPROXIMATE_MEMORY > 0
        ? Object.freeze({
            mode: read.ATELIER_APPROXIMATE,
            bytesMax: read.ATELIER_APPROXIMATE_MEMORY,
            ttlMs: read.ATELIER_CACHE_TTL_MS,
          })
        : undefined,
    leaseMs: read.ATELIER_LEASE_MS,
    jobs: read.ATELIER_JOBS,
    internalToken: read.ATELIER_INTERNAL_TOKEN,
    admission: Object.freeze({
      waitMaxMs: read.ATELIER_WAIT_MAX_MS,
      brownOutAfterMs: read.ATELIER_BROWN_OUT_AFTER_MS,
    }),
    dispatch: Object.freeze({
      attemptsMax: read.ATELIER_ATTEMPTS_MAX,
      retryShare: read.ATELIER_RETRY_SHARE,
      retryWaitMs: read.ATELIER_RETRY_WAIT_MS,
      stallMs: read.ATELIER_STALL_MS,
      checkpointEvery: read.ATELIER_CHECKPOINT_EVERY_STEPS,
      checkpointBytesMax: read.ATELIER_CHECKPOINT_BYTES_MAX,
      hedge: read.ATELIER_HEDGE,
    }),
    logLevel: read.ATELIER_LOG_LEVEL,
    logPrompts: read.ATELIER_LOG_PROMPTS,
    revision: read.ATELIER_REVISION,
    tenancy: {
      keysFile: read.ATELIER_KEYS_FILE,
      keys: read.ATELIER_KEYS,
      anonymousAllowed: read.ATELIER_ANONYMOUS === "allow",
      dataDir: read.ATELIER_DATA_DIR,
      tariff: { pricePerDeviceHour: read.ATELIER_PRICE_PER_DEVICE_HOUR, currency: read.ATELIER_CURRENCY },
    },
  });
}

/** Under the 30 s that Kubernetes gives a stopping pod, so that the last answers still leave. */
const DRAIN_TIMEOUT_MS = 25_000;

/** Somebody waits meanwhile for a picture that nobody makes any more. */
const FLIGHT_LEASE_MS_MAX = 3_000;

/** Every variable that the gateway reads, as a schema: what documentation and the chart are made from. */
export const gatewayEnvironment = z
  .object({
    // Loopback, since without keys nobody is asked for one; 8080 needs no privilege.
    ATELIER_LISTEN: z
      .string()
      .default("127.0.0.1:8080")
      .transform(hostPort({ portMin: 0 }))
      .describe("where it serves HTTP; port 0 takes a free one"),
    // Off unless it is asked for: several gateways of one machine would want one port.
    ATELIER_GRPC_LISTEN: z
      .string()
      .default("off")
      .transform((text, context) => (text === "off" ? undefined : hostPort({ portMin: 0 })(text, context)))
      .describe(
        "where the gRPC API listens, host:port, or `off`; `npm start` has it on 127.0.0.1:50050, or on a " +
          "free port where that is taken",
      ),
    ATELIER_WORKERS: z
      .string({ error: "must list the workers, such as 127.0.0.1:7001,127.0.0.1:7002" })
      .pipe(fromEnv.list())
      .superRefine(checkWorkers)
      .describe(
        "workers' gRPC addresses, `host:port`, separated by commas; `dns:///name:port` stands for all " +
          "addresses of a name, such as a headless service's, asked for again every five seconds. The name " +
          "must be whole (`workers.atelier.svc.cluster.local`): search domains are not applied",
      ),
    // A 1024x1024 picture of 150 steps on a slow device stays below two minutes.
    ATELIER_REQUEST_TIMEOUT_MS: fromEnv
      .integer({ min: 100, max: 3_600_000 })
      .default(120_000)
      .describe("from a request's arrival to its answer; carried to the worker as the call's deadline"),
    ATELIER_DRAIN_TIMEOUT_MS: fromEnv.integer({ min: 0, max: 3_600_000 }).optional().meta({
      description: "how long a stopping gateway waits for what is in flight",
      unset: "25000, or the request timeout if less",
    }),
    // The least: two prompts of PROMPT_BYTES_MAX, every byte of them escaped as \u0041 is. The default has room for a
    // picture of 12 MB to start from, which takes a third more in base64.
    ATELIER_BODY_MAX_BYTES: fromEnv
      .integer({ min: 128 * 1024, max: 64 * 1024 * 1024 })
      .default(16 * 1024 * 1024)
      .describe("largest request body; a picture to start from takes a third more than its file in it"),
    // A body of 16 MiB over 5 Mbit/s takes 27 s.
    ATELIER_RECEIVE_TIMEOUT_MS: fromEnv
      .integer({ min: 100, max: 600_000 })
      .default(30_000)
      .describe("how long a caller may take to send its headers (10 s at most) and body"),
    // Half of the 20,000 files that a process commonly may open.
    ATELIER_CONNECTIONS_MAX: fromEnv
      .integer({ min: 1, max: 1_000_000 })
      .default(10_000)
      .describe("callers' connections; more are closed as they come"),
    ATELIER_TLS_CERT: z
      .string()
      .optional()
      .describe(
        "serves HTTPS with this certificate and its chain, a PEM file, read again when it changes: see [security](security.md)",
      ),
    ATELIER_TLS_KEY: z.string().optional().describe("its key, a PEM file"),
    ATELIER_WORKER_CA: z
      .string()
      .optional()
      .describe("TLS with workers: the authority of their certificates, a PEM file, read again when it changes"),
    ATELIER_WORKER_CERT: z
      .string()
      .optional()
      .describe("TLS with workers: the certificate that this gateway shows, a PEM file"),
    ATELIER_WORKER_KEY: z.string().optional().describe("TLS with workers: its key, a PEM file"),
    ATELIER_WORKER_TLS_NAME: z.string().optional().meta({
      description:
        "TLS with workers: the name that their certificates are made out to, where they are found by address",
      unset: "each worker's address",
    }),
    ATELIER_CORS_ORIGINS: fromEnv
      .list()
      .default([])
      .superRefine(checkOrigins)
      .describe("whose pages may call from a browser, as `https://shop.example`, separated by commas; `*` for all"),
    ATELIER_MODEL_ALIASES: fromEnv
      .list()
      .default([])
      .transform(modelAliases)
      .describe(
        "other names of models, `name=model`, separated by commas; a name alone stands for the first " +
          "model that the caller may use. A model of that name comes first. `npm start` has the names of " +
          "OpenAI's image models: see [openai](openai.md#models)",
      ),
    // At 400 KB an answer, all of it is 100 MB.
    ATELIER_IN_FLIGHT_MAX: fromEnv
      .integer({ min: 1, max: 65_536 })
      .default(256)
      .describe("generations at once; more are refused with 503 and `Retry-After`"),
    ATELIER_REDIS: z
      .string()
      .transform(redisAddress)
      .optional()
      .describe(
        "what gateways share: `redis://host:6379/0`, `redis-cluster://host:6379,host:6380` or " +
          "`redis-sentinel://host:26379,host:26380/name`; `rediss` for TLS; `user:password@` before the " +
          "first host, percent-encoded. Without it a gateway shares nothing and keeps the same things in its memory",
      ),
    ATELIER_REDIS_CA: z
      .string()
      .optional()
      .meta({ description: "with TLS: the authorities to trust, a PEM file", unset: "the system's" }),
    ATELIER_REDIS_CERT: z.string().optional().describe("with TLS: the certificate to show, a PEM file"),
    ATELIER_REDIS_KEY: z.string().optional().describe("with TLS: its key, a PEM file"),
    ATELIER_REDIS_PREFIX: z
      .string()
      .default("atelier:")
      .describe("before every key and channel, so that several systems can share one Redis"),
    // In one data centre an answer takes one; a Redis that takes longer than this is worse than none.
    ATELIER_REDIS_TIMEOUT_MS: fromEnv
      .integer({ min: 10, max: 10_000 })
      .default(250)
      .describe("how long a request waits for an answer of Redis before it goes on without"),
    ATELIER_CACHE_SCOPE: z
      .enum(["off", ...CACHE_SCOPES], { error: `must be one of off, ${CACHE_SCOPES.join(", ")}` })
      .default("tenant")
      .describe(
        "who shares results ([caching](caching.md)): `tenant`: each tenant keeps its own; `shared`: all " +
          "tenants of this service; `off`: nothing is kept, every picture is made anew",
      ),
    ATELIER_CACHE_TTL_MS: fromEnv
      .integer({ min: 1_000, max: 30 * 86_400_000 })
      .default(86_400_000)
      .describe("how long a result is kept"),
    // A thousand pictures of 512x512.
    ATELIER_CACHE_MEMORY: bytesOrNone(256 * 1024 * 1024).describe(
      "what results may take in each gateway's memory; 0: none are kept there",
    ),
    ATELIER_CACHE_REDIS_MEMORY: bytesOrNone(1024 * 1024 * 1024).describe(
      "what results may take in Redis; beyond it those that nobody used for the longest go",
    ),
    ATELIER_CACHE_VARIANTS: fromEnv
      .integer({ min: 0, max: 64 })
      .default(4)
      .describe("different results that a request without a seed may get; 0: a new one each time, which is never kept"),
    ATELIER_CACHE_MIN_ASKS: fromEnv
      .integer({ min: 1, max: 200 })
      .default(2)
      .describe("how often something must be asked within the window before its result is kept"),
    ATELIER_CACHE_ASK_WINDOW_MS: fromEnv
      .integer({ min: 1_000, max: 30 * 86_400_000 })
      .default(3_600_000)
      .describe("that window"),
    // What it changes is the picture, so callers decide.
    ATELIER_APPROXIMATE: z
      .enum(["off", ...APPROXIMATE_MODES], { error: `must be one of off, ${APPROXIMATE_MODES.join(", ")}` })
      .default("on-request")
      .describe(
        "whether pictures may begin from a similar prompt's latent ([approximate " +
          'cache](approximate-cache.md)): `on-request`: where the request asks for it (`"cache": "approximate"`); `always`: wherever an earlier answer would do; `off`: never. Nothing of it ' +
          "where `ATELIER_CACHE_SCOPE` is `off`",
      ),
    // A thousand pictures of 512x512 at two steps each.
    ATELIER_APPROXIMATE_MEMORY: bytesOrNone(256 * 1024 * 1024).describe(
      "what those latents may take, in Redis or without one in the gateway; beyond it those that were " +
        "of no use for the longest go; 0: none are kept",
    ),
    ATELIER_JOBS: z
      .string()
      .transform(serviceUrl)
      .optional()
      .describe(
        "URL of the jobs service, `http://127.0.0.1:8090`, to which the routes of bulk jobs are passed " +
          "on; without it they answer 404. Beyond loopback it needs a token beside it",
      ),
    ATELIER_INTERNAL_TOKEN: z
      .string()
      .min(16, "must have at least 16 characters")
      .optional()
      .describe(
        "what the gateways and the jobs service show each other, at least 16 characters, the same " +
          "everywhere; without it they believe each other over loopback only",
      ),
    ATELIER_KEYS_FILE: z
      .string()
      .optional()
      .describe(
        "a JSON file of API keys and tenants, read again when it changes; a Kubernetes secret is mounted " +
          "as one. See [tenants](tenants.md)",
      ),
    ATELIER_KEYS: z.string().optional().describe("the same JSON, in the variable itself"),
    ATELIER_ANONYMOUS: z
      .enum(["allow"], { error: "must be allow, or unset" })
      .optional()
      .describe(
        "`allow`: listens beyond loopback with no key known, for those whose own proxy asks callers who they are",
      ),
    ATELIER_DATA_DIR: z
      .string()
      .optional()
      .meta({
        description:
          "folder in which an embedded gateway keeps keys that its admin API made, and usage " +
          "(`gateway.sqlite`). `npm start` keeps bulk jobs in it as well, and without it in " +
          "`~/.local/share/atelier` (`$XDG_DATA_HOME/atelier`): `jobs/`, with `--cluster` or `--nats` `cluster/`",
        unset: "none: in memory",
      }),
    // Nothing costs anything until somebody says what a device does.
    ATELIER_PRICE_PER_DEVICE_HOUR: z.coerce
      .number({ error: "must be a number" })
      .min(0)
      .max(1_000_000)
      .default(0)
      .describe("what an hour of a whole device costs; a tenant may have a price of its own"),
    ATELIER_CURRENCY: z
      .string()
      .regex(/^[A-Za-z]{1,8}$/, "must be 1 to 8 letters, such as EUR")
      .default("USD")
      .describe("the label that goes with prices; nothing is converted"),
    // Longer than any generation takes; in Redis a thousand pictures are some 400 MB for as long.
    ATELIER_GENERATIONS_KEPT_MS: fromEnv
      .integer({ min: 60_000, max: 30 * 86_400_000 })
      .default(3_600_000)
      .describe("how long a generation in the background can be read once it has ended, pictures and all"),
    // Renewed three times in its length: a pause of some seconds, as a long garbage collection, loses nothing.
    ATELIER_LEASE_MS: fromEnv
      .integer({ min: 300, max: 600_000 })
      .default(10_000)
      .describe(
        "how soon the other gateways may take over what a gateway that died was at: idempotency keys, asynchronous generations",
      ),
    // Half of the time that a request has by default: what waits longer has mostly been given up by its caller.
    ATELIER_WAIT_MAX_MS: fromEnv
      .integer({ min: 0, max: 3_600_000 })
      .default(60_000)
      .describe(
        "milliseconds of work that may lie before a request on the worker that would finish it first; " +
          "beyond it requests are refused with 503 and `Retry-After`",
      ),
    ATELIER_BROWN_OUT_AFTER_MS: fromEnv
      .integer({ min: 1, max: 3_600_000 })
      .optional()
      .meta({
        description:
          "predicted wait from which requests without a seed are made with 3/4 of their steps, and from " +
          "twice as much with half of them and a fast sampler; answers say so",
        unset: "never",
      }),
    // One for the worker, one for its successor, and one more where that is taken as well.
    ATELIER_ATTEMPTS_MAX: fromEnv
      .integer({ min: 1, max: 10 })
      .default(3)
      .describe("calls to workers that may fail before a request does; 1: no other is tried ([faults](faults.md))"),
    // As Finagle's and Envoy's budgets: an outage adds a fifth of load at most.
    ATELIER_RETRY_SHARE: z.coerce
      .number({ error: "must be a number" })
      .min(0)
      .max(1)
      .default(0.2)
      .describe(
        "retries and hedges over all requests, as a share of them in the long run; as many as " +
          "`ATELIER_IN_FLIGHT_MAX` are saved up",
      ),
    // A worker that restarts has loaded a model by then.
    ATELIER_RETRY_WAIT_MS: fromEnv
      .integer({ min: 0, max: 3_600_000 })
      .default(15_000)
      .describe(
        "how long a request whose worker is lost waits for another, or for that one's return; never more " +
          "than half of its time left",
      ),
    // Longer than the slowest step that was seen (a second, 1024x1024 on a CPU), and than a decoding.
    ATELIER_STALL_MS: fromEnv
      .integer({ min: 100, max: 3_600_000 })
      .default(20_000)
      .describe(
        "the least silence after which a worker counts as hanging; more where it is predicted to be busy with others",
      ),
    ATELIER_CHECKPOINT_EVERY_STEPS: fromEnv.integer({ min: 0, max: 1_000 }).optional().meta({
      description: "steps after which a worker sends where a picture stands, for another to go on from; 0: never",
      unset: "a fifth of the steps; none for what takes less than 250 ms",
    }),
    // 2,000 pictures of 512x512 on their way.
    ATELIER_CHECKPOINT_BYTES_MAX: fromEnv
      .bytes()
      .default(256 * 1024 * 1024)
      .describe(
        "what those states may take in memory; the newest of each picture is kept, and beyond this the one before it",
      ),
    ATELIER_HEDGE: z
      .string()
      .default("off")
      .transform(hedge)
      .describe(
        "a second attempt beside a straggler: `on` when it takes longer than 99 of 100 do, or a number: " +
          "so many times as long as predicted",
      ),
    ...telemetryVariables,
    ...buildVariables,
  })
  .superRefine(checkRedis)
  .superRefine(checkTlsFiles)
  .superRefine(checkJobs)
  .superRefine((read, context) => {
    const drainMs = read.ATELIER_DRAIN_TIMEOUT_MS;
    if (drainMs === undefined || drainMs <= read.ATELIER_REQUEST_TIMEOUT_MS) return;
    context.addIssue({
      code: "custom",
      path: ["ATELIER_DRAIN_TIMEOUT_MS"],
      message: `must not exceed ATELIER_REQUEST_TIMEOUT_MS (${read.ATELIER_REQUEST_TIMEOUT_MS}): no request lives longer`,
    });
  });

const DNS_SCHEME = /^dns:\/\/\//;

/** The name of `dns:///name:port`; undefined of a plain host:port. Of an entry that `readGatewayConfig` let through. */
export function dnsNameOf(worker: string): HostPort | undefined {
  return DNS_SCHEME.test(worker) ? parseHostPort(worker.replace(DNS_SCHEME, ""), { portMin: 1 }) : undefined;
}

/** 0 is a size, too: nothing is kept there. */
function bytesOrNone(otherwise: number) {
  const error = "must be bytes, as 8589934592, 8GiB, 512MiB or 8GB, or 0 for none";
  return z.union([z.literal("0").transform(() => 0), fromEnv.bytes()], { error }).default(otherwise);
}

function checkWorkers(addresses: readonly string[], context: z.RefinementCtx): void {
  if (addresses.length === 0) context.addIssue({ code: "custom", message: "must name at least one worker" });
  addresses.forEach((address, i) => {
    if (parseHostPort(address.replace(DNS_SCHEME, ""), { portMin: 1 }) === undefined) {
      const message = `${JSON.stringify(address)} is neither host:port nor dns:///name:port`;
      context.addIssue({ code: "custom", message });
    }
    if (addresses.indexOf(address) !== i) {
      context.addIssue({ code: "custom", message: `${JSON.stringify(address)} is named twice` });
    }
  });
}

/** Of `name=model` and `name`. */
function modelAliases(entries: readonly string[], context: z.RefinementCtx): ReadonlyMap<string, string | undefined> {
  const aliases = new Map<string, string | undefined>();
  const refuse = (entry: string, complaint: string) =>
    context.addIssue({ code: "custom", message: `${JSON.stringify(entry)} ${complaint}` });
  for (const entry of entries) {
    const [, name, model] = /^([^\s=]{1,128})(?:=([^\s=]{1,128}))?$/.exec(entry) ?? [];
    if (name === undefined) refuse(entry, "is neither name=model nor a name alone");
    else if (aliases.has(name)) refuse(entry, `names ${name} again`);
    else aliases.set(name, model);
  }
  for (const [name, model] of aliases) {
    if (model !== undefined && aliases.has(model)) refuse(`${name}=${model}`, "leads to another alias, not to a model");
  }
  return aliases;
}

function redisAddress(text: string, context: z.RefinementCtx): RedisAddress {
  try {
    return parseRedisAddress(text);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    context.addIssue({ code: "custom", message: error.message });
    return z.NEVER;
  }
}

function checkRedis(
  read: {
    readonly ATELIER_REDIS?: RedisAddress | undefined;
    readonly ATELIER_REDIS_CA?: string | undefined;
    readonly ATELIER_REDIS_CERT?: string | undefined;
    readonly ATELIER_REDIS_KEY?: string | undefined;
  },
  context: z.RefinementCtx,
): void {
  const refuse = (variable: string, message: string) => context.addIssue({ code: "custom", path: [variable], message });
  for (const variable of ["ATELIER_REDIS_CA", "ATELIER_REDIS_CERT", "ATELIER_REDIS_KEY"] as const) {
    if (read[variable] === undefined || read.ATELIER_REDIS?.tls === true) continue;
    refuse(variable, "is for TLS, and ATELIER_REDIS asks for none: its address would start with rediss");
  }
  if ((read.ATELIER_REDIS_CERT === undefined) !== (read.ATELIER_REDIS_KEY === undefined)) {
    const missing = read.ATELIER_REDIS_CERT === undefined ? "ATELIER_REDIS_CERT" : "ATELIER_REDIS_KEY";
    refuse(missing, "a certificate and its key go together");
  }
}

function hedge(text: string, context: z.RefinementCtx): "off" | "learned" | number {
  if (text === "off") return text;
  if (text === "on") return "learned";
  const factor = Number(text);
  if (factor >= 1 && factor <= 100) return factor;
  context.addIssue({ code: "custom", message: "must be off, on, or how many times as long as predicted (1 to 100)" });
  return z.NEVER;
}

function hostPort(limits: { portMin: number }) {
  return (text: string, context: z.RefinementCtx): HostPort => {
    const parsed = parseHostPort(text, limits);
    if (parsed !== undefined) return parsed;
    context.addIssue({ code: "custom", message: "must be host:port, such as 127.0.0.1:8080 or [::1]:8080" });
    return z.NEVER;
  };
}

/** Reads host:port; an IPv6 host stands in brackets, which are taken off. */
function parseHostPort(text: string, { portMin }: { portMin: number }): HostPort | undefined {
  const match = /^(?:\[([0-9a-f:.]+)\]|([^\s:/[\]]+)):(\d{1,5})$/i.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (host === undefined || port < portMin || port > 65_535) return undefined;
  return { host, port };
}

import { availableParallelism, hostname } from "node:os";
import { ConfigError, fromEnv, readConfig } from "@atelier/core";
import { parseQueueAddress } from "@atelier/job-queue";
import { parseObjectsAddress, type S3Settings } from "@atelier/object-store";
import type { TlsFileNames } from "@atelier/rpc";
import { buildVariables, type LOG_LEVELS, type LogPrompts, telemetryVariables } from "@atelier/telemetry";
import { z } from "zod";
import type { DeviceSpec } from "./device/device.ts";
import { PROVIDERS } from "./device/onnx/providers.ts";
import { SIMULATED_GPUS } from "./device/simulated/gpu-figures.ts";
import { DECODE_TILE_PIXELS } from "./stages/image-decode.ts";

export interface WorkerConfig {
  readonly id: string;
  /** Of workers that are alike and are scaled together. */
  readonly pool: string;
  readonly listen: Address;
  /** Undefined: whoever reaches it is served, in clear. */
  readonly tls: Required<TlsFileNames> | undefined;
  /** Where /metrics and /healthz are. */
  readonly metricsListen: Address;
  readonly bundleDirs: readonly string[];
  /** Models to load before it is ready; undefined: all that fit, in order. */
  readonly preload: readonly string[] | undefined;
  /** What models and their step batches may take; undefined: what the device suggests. */
  readonly memoryBudgetBytes: number | undefined;
  readonly device: DeviceSpec;
  /** Where TensorRT keeps its engines; undefined: it builds them at each start. */
  readonly tensorrtCacheDir: string | undefined;
  /** What to do where the provider is not there: refuse to start, or use the CPU and say so. */
  readonly fallback: "none" | "cpu";
  /** Requests in flight and waiting. */
  readonly queueMax: number;
  /** Images in one U-Net run. */
  readonly stepBatchMax: number;
  /** A class of requests that got no turn for so long gets the next step batch. */
  readonly ageingMs: number;
  /** Where what was learned is kept between runs; undefined: nowhere. */
  readonly stateDir: string | undefined;
  /** Pictures of more pixels are decoded in tiles. */
  readonly decodeTilePixels: number;
  readonly drainMs: number;
  /** Where items of bulk jobs are pulled from; undefined: it pulls none. */
  readonly bulk: BulkConfig | undefined;
  readonly logLevel: (typeof LOG_LEVELS)[number];
  readonly logPrompts: LogPrompts;
  /** Of the source that was built; undefined: not known. */
  readonly revision: string | undefined;
}

export interface BulkConfig {
  /** As `openJobQueue` takes it. */
  readonly queue: {
    readonly address: string;
    readonly prefix: string;
    readonly replicas: number;
    readonly leaseMs: number;
    readonly timeoutMs: number;
  };
  /** As `openObjectStore` takes it. */
  readonly objects: string;
  /** Of an address in S3. */
  readonly s3: S3Settings;
  /** Tries of one item. */
  readonly attemptsMax: number;
}

export interface Address {
  readonly host: string;
  readonly port: number;
}

/** "host:port", "[v6]:port". */
const ADDRESS = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]]+)):(\d{1,5})$/;

const address = () =>
  z.string().transform((text, context): Address => {
    const match = ADDRESS.exec(text);
    const port = Number(match?.[3]);
    if (match !== null && port <= 65_535) return { host: (match[1] ?? match[2])!, port };
    context.addIssue({ code: "custom", message: "must be HOST:PORT, the port 0..65535 (0: any free one)" });
    return z.NEVER;
  });

/** A text that `parse` does not throw at. */
const accepted = (parse: (text: string) => unknown) =>
  z.string().superRefine((text, context) => {
    try {
      parse(text);
    } catch (error) {
      context.addIssue({ code: "custom", message: (error as Error).message });
    }
  });

/** Every variable that a worker reads, as a schema: what documentation and the chart are made from. */
export const workerEnvironment = z.object({
  ATELIER_WORKER_ID: z
    .string()
    .max(200)
    .optional()
    .meta({ description: "its name in logs, receipts and the fleet", unset: "host name and process id" }),
  ATELIER_WORKER_POOL: z
    .string()
    .regex(/^[a-z0-9-]{1,40}$/, "must be 1 to 40 small letters, digits and -")
    .default("default")
    .describe("the pool that it belongs to, of workers that are alike and are scaled together"),
  // Loopback, as the service has no authentication of its own: a cluster sets the pod's address.
  ATELIER_WORKER_LISTEN: address().default({ host: "127.0.0.1", port: 50_051 }).describe("where it serves gRPC"),
  ATELIER_WORKER_TLS_CERT: z
    .string()
    .optional()
    .describe(
      "serves gRPC with TLS and this certificate, a PEM file, read again when it changes: see [security](security.md)",
    ),
  ATELIER_WORKER_TLS_KEY: z.string().optional().describe("its key, a PEM file"),
  ATELIER_WORKER_TLS_CLIENT_CA: z
    .string()
    .optional()
    .describe("the authority of callers' certificates, a PEM file; who shows none of it is refused"),
  // Any free port: several workers on one machine must not fight for it. The log says which.
  ATELIER_WORKER_METRICS_LISTEN: address()
    .default({ host: "127.0.0.1", port: 0 })
    .describe("where `/metrics` and `/healthz` are; the log names the port"),
  ATELIER_MODELS: z
    .string({ error: "must name the model bundles: folders, separated by commas" })
    .pipe(fromEnv.list())
    .refine((dirs) => dirs.length > 0, "names no folder")
    .describe("folders of model bundles, separated by commas ([models.md](models.md))"),
  ATELIER_PRELOAD: fromEnv.list().optional().meta({
    description:
      "ids of the models to load before the worker is ready, separated by commas; `none`: each when it is first asked for",
    unset: "the first model, and further ones in order while they fit",
  }),
  ATELIER_MEMORY_BUDGET: fromEnv.bytes().optional().meta({
    description:
      "what models and their step batches may take together, as `8GiB`, `512MiB` or bytes; see [memory](#memory)",
    unset:
      "on `cpu` 80 % of the machine's memory, or of the control group's limit where that is less; elsewhere not known",
  }),
  ATELIER_DEVICE: z
    .enum([...PROVIDERS, "simulated"])
    .default("cpu")
    .describe(
      "onnxruntime execution provider: `cpu`, `cuda`, `tensorrt`, `webgpu`; or `simulated`, a GPU that " +
        "is not there, for planning and load tests: see [devices](devices.md)",
    ),
  ATELIER_TENSORRT_CACHE_DIR: z
    .string()
    .optional()
    .describe("with `tensorrt`: a folder for its engines, which take minutes to build; see [devices](devices.md)"),
  ATELIER_SIMULATED_GPU: z
    .enum(SIMULATED_GPUS)
    .optional()
    .meta({ description: "with `simulated`: `a10`, `a100`, `h100` or `rtx4090`", unset: "`a10`" }),
  ATELIER_SIMULATED_SPEED: z.coerce
    .number({ error: "must be a number" })
    .min(0.01)
    .max(1000)
    .optional()
    .meta({
      description:
        "with `simulated`: how many times faster than the GPU it runs, for tests of many requests; " +
        "receipts name it, as `simulated:a10x50`",
      unset: "1",
    }),
  // Refusing is the default: a GPU machine that quietly serves from its CPU is 50 times slower and looks healthy.
  ATELIER_DEVICE_FALLBACK: z
    .enum(["none", "cpu"])
    .default("none")
    .describe("where the provider is absent: `none` refuses to start, `cpu` serves from the CPU and says so"),
  ATELIER_NARROW_LANES: fromEnv.integer({ min: 0, max: 1024 }).optional().meta({
    description:
      "sessions of one thread that a U-Net may have on a CPU; each holds its weights again, so a large model wants fewer, or 0",
    unset: "`ATELIER_THREADS`",
  }),
  ATELIER_THREADS: fromEnv
    .integer({ min: 1, max: 1024 })
    .optional()
    .meta({
      description:
        "CPU threads of a U-Net: one session of all of them, and, when there is work for several, " +
        "sessions of one thread each",
      unset: "all cores",
    }),
  ATELIER_QUEUE_MAX: fromEnv
    .integer({ min: 1, max: 10_000 })
    .default(64)
    .describe(
      "requests in flight and waiting; more are refused as OVERLOADED. Items of bulk jobs take none of these places",
    ),
  // Rows per second on a CPU hardly grow beyond 16 rows, which are 8 images with guidance.
  ATELIER_STEP_BATCH_MAX: fromEnv.integer({ min: 1, max: 256 }).default(8).describe("images in one U-Net run"),
  // Long beside a step, so that urgent work hardly notices; short beside the patience of whoever waits for bulk work.
  ATELIER_AGEING_MS: fromEnv
    .integer({ min: 0, max: 3_600_000 })
    .default(2000)
    .describe(
      "a class of requests that could run and got no turn for so long gets the next step batch, however " +
        "much more urgent work there is",
    ),
  ATELIER_STATE_DIR: z.string().optional().meta({
    description: "folder where learned step times are kept between runs (`step-times.json`)",
    unset: "nowhere",
  }),
  ATELIER_DECODE_TILE_PIXELS: fromEnv
    .integer({ min: 64 * 64, max: 16_384 ** 2 })
    .default(DECODE_TILE_PIXELS)
    .describe("pictures of more pixels are decoded in tiles, which take less memory and differ a little in tone"),
  // Kubernetes' default grace period is 30 s.
  ATELIER_DRAIN_MS: fromEnv
    .integer({ min: 0, max: 3_600_000 })
    .default(30_000)
    .describe("how long work in flight may take after SIGTERM"),
  ATELIER_QUEUE: accepted(parseQueueAddress)
    .optional()
    .meta({
      description:
        "where items of bulk jobs are pulled from: `sqlite:/path/queue.db` or `nats://host:4222`, several " +
        "servers separated by commas",
      unset: "none: nothing is pulled",
    }),
  ATELIER_OBJECTS: accepted(parseObjectsAddress)
    .optional()
    .describe("where their pictures go: `file:/folder` or `s3://bucket/prefix`; must be set beside `ATELIER_QUEUE`"),
  ATELIER_S3_ENDPOINT: z
    .url({ protocol: /^https?$/, error: "must be an http or https URL" })
    .optional()
    .meta({
      description: "URL of an S3 that is not AWS's, such as `https://storage.example:9000`; as the jobs service has it",
      unset: "AWS's",
    }),
  ATELIER_S3_REGION: z.string().min(1).default("us-east-1").describe("region of [the bucket](#a-bucket)"),
  ATELIER_S3_PATH_STYLE: fromEnv
    .boolean()
    .default(false)
    .describe(
      "`true`: the bucket is named in the URL's path and not in its host, as most S3 that is not AWS's wants it",
    ),
  ATELIER_QUEUE_PREFIX: z
    .string()
    .regex(/^[A-Za-z0-9_-]{1,64}$/, "must be 1 to 64 letters, digits, - and _")
    .default("ATELIER")
    .describe("what the names of everything kept on a NATS server begin with, as the jobs service has it"),
  ATELIER_QUEUE_REPLICAS: fromEnv
    .integer({ min: 1, max: 5 })
    .default(1)
    .describe("copies of each stream that a NATS cluster keeps, should the worker be the first to need them"),
  ATELIER_QUEUE_LEASE_MS: fromEnv
    .integer({ min: 1000, max: 3_600_000 })
    .default(30_000)
    .describe("how long an item is this worker's without a sign of life; then another makes it"),
  ATELIER_QUEUE_TIMEOUT_MS: fromEnv
    .integer({ min: 100, max: 600_000 })
    .default(5000)
    .describe("how long the queue may take to answer; at most half of the lease"),
  ATELIER_ITEM_ATTEMPTS_MAX: fromEnv
    .integer({ min: 1, max: 1000 })
    .default(5)
    .describe("tries of one item before it lies among the dead letters"),
  ...telemetryVariables,
  ...buildVariables,
});

/** @throws ConfigError naming every bad variable. */
export function readWorkerConfig(env: Record<string, string | undefined>): WorkerConfig {
  const values = readConfig(workerEnvironment, env);
  return Object.freeze({
    id: values.ATELIER_WORKER_ID ?? `${hostname()}-${process.pid}`,
    pool: values.ATELIER_WORKER_POOL,
    listen: values.ATELIER_WORKER_LISTEN,
    tls: tlsOf(values),
    metricsListen: values.ATELIER_WORKER_METRICS_LISTEN,
    bundleDirs: values.ATELIER_MODELS,
    preload: preloadOf(values.ATELIER_PRELOAD),
    memoryBudgetBytes: values.ATELIER_MEMORY_BUDGET,
    device: deviceOf(values),
    tensorrtCacheDir: values.ATELIER_TENSORRT_CACHE_DIR,
    fallback: values.ATELIER_DEVICE_FALLBACK,
    queueMax: values.ATELIER_QUEUE_MAX,
    stepBatchMax: values.ATELIER_STEP_BATCH_MAX,
    ageingMs: values.ATELIER_AGEING_MS,
    stateDir: values.ATELIER_STATE_DIR,
    decodeTilePixels: values.ATELIER_DECODE_TILE_PIXELS,
    drainMs: values.ATELIER_DRAIN_MS,
    bulk: bulkOf(values),
    logLevel: values.ATELIER_LOG_LEVEL,
    logPrompts: values.ATELIER_LOG_PROMPTS,
    revision: values.ATELIER_REVISION,
  });
}

/** @throws ConfigError where some of the three are there: TLS that lets everybody in would look like security. */
function tlsOf(values: z.output<typeof workerEnvironment>): WorkerConfig["tls"] {
  const named = (["CLIENT_CA", "CERT", "KEY"] as const).map((name) => {
    const variable = `ATELIER_WORKER_TLS_${name}` as const;
    return { variable, file: values[variable] };
  });
  const missing = named.filter(({ file }) => file === undefined).map(({ variable }) => variable);
  if (missing.length === named.length) return undefined;
  if (missing.length > 0) {
    const given = named.map(({ variable }) => variable).filter((variable) => !missing.includes(variable));
    throw new ConfigError(`${missing.join(" and ")} must be set beside ${given.join(" and ")}`);
  }
  const [ca, cert, key] = named as { variable: string; file: string }[];
  return { ca: ca!, cert: cert!, key: key! };
}

/** @throws ConfigError where only one of both is there, or a lease is over before a single call of the queue may be. */
function bulkOf(values: z.output<typeof workerEnvironment>): BulkConfig | undefined {
  const { ATELIER_QUEUE: address, ATELIER_OBJECTS: objects } = values;
  if (address === undefined && objects === undefined) return undefined;
  if (address === undefined) throw new ConfigError("ATELIER_QUEUE must be set beside ATELIER_OBJECTS");
  if (objects === undefined) throw new ConfigError("ATELIER_OBJECTS must be set beside ATELIER_QUEUE");
  const { ATELIER_QUEUE_LEASE_MS: leaseMs, ATELIER_QUEUE_TIMEOUT_MS: timeoutMs } = values;
  // It is extended at a third of its length, and that has to have arrived by its end.
  if (timeoutMs > leaseMs / 2) {
    throw new ConfigError(
      `ATELIER_QUEUE_TIMEOUT_MS=${timeoutMs}: must be at most half of ATELIER_QUEUE_LEASE_MS=${leaseMs}`,
    );
  }
  const { ATELIER_QUEUE_PREFIX: prefix, ATELIER_QUEUE_REPLICAS: replicas } = values;
  const queue = { address, prefix, replicas, leaseMs, timeoutMs };
  const s3 = {
    endpoint: values.ATELIER_S3_ENDPOINT,
    region: values.ATELIER_S3_REGION,
    pathStyle: values.ATELIER_S3_PATH_STYLE,
  };
  return { queue, objects, s3, attemptsMax: values.ATELIER_ITEM_ATTEMPTS_MAX };
}

/** "none" alone loads nothing at the start. */
function preloadOf(ids: readonly string[] | undefined): readonly string[] | undefined {
  return ids?.length === 1 && ids[0] === "none" ? [] : ids;
}

/** @throws ConfigError where a GPU is named that nothing simulates: a real device must not be taken for it. */
function deviceOf(values: z.output<typeof workerEnvironment>): DeviceSpec {
  const { ATELIER_DEVICE: provider, ATELIER_SIMULATED_GPU: gpu, ATELIER_SIMULATED_SPEED: speed } = values;
  if (provider === "simulated") return { kind: "simulated", gpu: gpu ?? "a10", ...(speed && { speed }) };
  if (speed !== undefined) {
    throw new ConfigError(`ATELIER_SIMULATED_SPEED=${speed}: has no meaning with ATELIER_DEVICE=${provider}`);
  }
  if (gpu === undefined) {
    const threads = values.ATELIER_THREADS ?? availableParallelism();
    return { kind: "onnx", provider, threads, narrowLanesMax: values.ATELIER_NARROW_LANES ?? threads };
  }
  throw new ConfigError(`ATELIER_SIMULATED_GPU=${gpu}: has no meaning with ATELIER_DEVICE=${provider}`);
}

/** An address as URLs and gRPC targets write it. */
export function addressText({ host, port }: Address): string {
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}

/** The address of `variable` cannot be bound, most often since another process has it. */
export function cannotListen(variable: string, target: string, cause: unknown): ConfigError {
  const error = new ConfigError(`cannot listen on ${variable}=${target}: ${(cause as Error).message}`);
  error.cause = cause;
  return error;
}

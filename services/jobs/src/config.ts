import { fromEnv, readConfig } from "@atelier/core";
import { parseQueueAddress } from "@atelier/job-queue";
import { parseObjectsAddress, type S3Settings } from "@atelier/object-store";
import { buildVariables, LOG_LEVELS, type LogPrompts, telemetryVariables } from "@atelier/telemetry";
import { z } from "zod";

export interface JobsConfig {
  readonly listen: HostPort;
  /** URLs of gateways, any of which will do. */
  readonly gateways: readonly string[];
  /** What the gateways say to be let in, and are told; undefined: only loopback is listened on and asked. */
  readonly internalToken: string | undefined;
  readonly queue: QueueConfig;
  /** As `openObjectStore` reads it. */
  readonly objects: string;
  /** Of an address in S3. */
  readonly s3: S3Settings;
  readonly uploadBytesMax: number;
  readonly itemsMax: number;
  /** A job is deleted so long after its end, unless it says otherwise. */
  readonly keptMs: number;
  /** Whether webhooks may call private addresses. */
  readonly webhookPrivate: boolean;
  readonly drainTimeoutMs: number;
  readonly logLevel: (typeof LOG_LEVELS)[number];
  readonly logPrompts: LogPrompts;
  /** Of the source that was built; undefined: not known. */
  readonly revision: string | undefined;
}

export interface QueueConfig {
  readonly address: string;
  readonly prefix: string;
  readonly replicas: number;
  readonly leaseMs: number;
  readonly timeoutMs: number;
}

export interface HostPort {
  readonly host: string;
  readonly port: number;
}

/** @throws ConfigError naming every bad variable at once. */
export function readJobsConfig(env: Record<string, string | undefined>): JobsConfig {
  const read = readConfig(jobsEnvironment, env);
  return Object.freeze({
    listen: read.ATELIER_JOBS_LISTEN,
    gateways: read.ATELIER_GATEWAY,
    internalToken: read.ATELIER_INTERNAL_TOKEN,
    queue: Object.freeze({
      address: read.ATELIER_QUEUE,
      prefix: read.ATELIER_QUEUE_PREFIX,
      replicas: read.ATELIER_QUEUE_REPLICAS,
      leaseMs: read.ATELIER_QUEUE_LEASE_MS,
      timeoutMs: read.ATELIER_QUEUE_TIMEOUT_MS,
    }),
    objects: read.ATELIER_OBJECTS,
    s3: Object.freeze({
      endpoint: read.ATELIER_S3_ENDPOINT,
      region: read.ATELIER_S3_REGION,
      pathStyle: read.ATELIER_S3_PATH_STYLE,
    }),
    uploadBytesMax: read.ATELIER_JOB_UPLOAD_MAX,
    itemsMax: read.ATELIER_JOB_ITEMS_MAX,
    keptMs: read.ATELIER_JOBS_KEPT_MS,
    webhookPrivate: read.ATELIER_WEBHOOK_PRIVATE === "allow",
    drainTimeoutMs: read.ATELIER_DRAIN_TIMEOUT_MS,
    logLevel: read.ATELIER_LOG_LEVEL,
    logPrompts: read.ATELIER_LOG_PROMPTS,
    revision: read.ATELIER_REVISION,
  });
}

const LOOPBACK = new Set(["127.0.0.1", "::1", "localhost"]);

/** Every variable that the jobs service reads, as a schema: what documentation and the chart are made from. */
export const jobsEnvironment = z
  .object({
    // Loopback, since what it believes of callers is what a gateway says.
    ATELIER_JOBS_LISTEN: hostPort("127.0.0.1:8090"),
    ATELIER_GATEWAY: z
      .string()
      .default("http://127.0.0.1:8080")
      .pipe(fromEnv.list())
      .superRefine((urls, context) => {
        if (urls.length === 0)
          context.addIssue({ code: "custom", message: "must name a gateway, such as http://gateway:8080" });
        for (const url of urls) {
          if (/^https?:$/.test(URL.parse(url)?.protocol ?? "")) continue;
          context.addIssue({ code: "custom", message: `${JSON.stringify(url)} is no http or https URL` });
        }
      }),
    ATELIER_INTERNAL_TOKEN: z.string().min(16, "must have at least 16 characters").optional(),
    ATELIER_QUEUE: checked("must be sqlite:/folder/queue.db or nats://host:port", parseQueueAddress),
    ATELIER_QUEUE_PREFIX: z
      .string()
      .regex(/^[A-Za-z0-9_-]{1,64}$/, "must be 1 to 64 letters, digits, - and _")
      .default("ATELIER"),
    ATELIER_QUEUE_REPLICAS: fromEnv.integer({ min: 1, max: 5 }).default(1),
    // Extended three times in its length: a pause of some seconds loses nothing, and a dead worker's items wait no longer.
    ATELIER_QUEUE_LEASE_MS: fromEnv.integer({ min: 1_000, max: 3_600_000 }).default(30_000),
    ATELIER_QUEUE_TIMEOUT_MS: fromEnv.integer({ min: 100, max: 60_000 }).default(5_000),
    ATELIER_OBJECTS: checked("must be file:/folder or s3://bucket/prefix", parseObjectsAddress),
    ATELIER_S3_ENDPOINT: z
      .url({ protocol: /^https?$/, error: "must be a URL, such as https://storage.example:9000" })
      .optional(),
    ATELIER_S3_REGION: z.string().min(1).default("us-east-1"),
    ATELIER_S3_PATH_STYLE: fromEnv.boolean().default(false),
    // 100,000 lines of prompts of 1 KB take a fifth of it.
    ATELIER_JOB_UPLOAD_MAX: fromEnv.bytes().default(512 * 1024 * 1024),
    ATELIER_JOB_ITEMS_MAX: fromEnv.integer({ min: 1, max: 1_000_000 }).default(1_000_000),
    ATELIER_JOBS_KEPT_MS: fromEnv.integer({ min: 60_000, max: 10 * 365 * 86_400_000 }).default(30 * 86_400_000),
    ATELIER_WEBHOOK_PRIVATE: z.enum(["allow"], { error: "must be allow, or unset" }).optional(),
    // Under the 30 s that Kubernetes gives a stopping pod.
    ATELIER_DRAIN_TIMEOUT_MS: fromEnv.integer({ min: 0, max: 3_600_000 }).default(10_000),
    ATELIER_LOG_LEVEL: z.enum(LOG_LEVELS, { error: `must be one of ${LOG_LEVELS.join(", ")}` }).default("info"),
    ...telemetryVariables,
    ...buildVariables,
  })
  .superRefine((read, context) => {
    if (read.ATELIER_INTERNAL_TOKEN !== undefined || LOOPBACK.has(read.ATELIER_JOBS_LISTEN.host)) return;
    const message = `is missing: whoever reaches ${read.ATELIER_JOBS_LISTEN.host} could say to be anybody`;
    context.addIssue({ code: "custom", path: ["ATELIER_INTERNAL_TOKEN"], message });
  });

function hostPort(otherwise: string) {
  return z
    .string()
    .default(otherwise)
    .transform((text, context): HostPort => {
      const match = /^(?:\[([0-9a-f:.]+)\]|([^\s:/[\]]+)):(\d{1,5})$/i.exec(text);
      const port = Number(match?.[3]);
      if (match !== null && port <= 65_535) return { host: (match[1] ?? match[2])!, port };
      context.addIssue({ code: "custom", message: "must be host:port, such as 127.0.0.1:8090 or [::1]:8090" });
      return z.NEVER;
    });
}

/** An address that its package reads; kept as text. */
function checked(error: string, parse: (text: string) => unknown) {
  return z.string({ error }).superRefine((text, context) => {
    try {
      parse(text);
    } catch (thrown) {
      if (!(thrown instanceof RangeError)) throw thrown;
      context.addIssue({ code: "custom", message: thrown.message });
    }
  });
}

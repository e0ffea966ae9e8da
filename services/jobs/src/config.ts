import { fromEnv, readConfig } from "@atelier/core";
import { parseQueueAddress } from "@atelier/job-queue";
import { parseObjectsAddress, type S3Settings } from "@atelier/object-store";
import { buildVariables, type LOG_LEVELS, type LogPrompts, telemetryVariables } from "@atelier/telemetry";
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
    ATELIER_JOBS_LISTEN: hostPort("127.0.0.1:8090").describe(
      "where it serves what gateways pass on, and `/healthz`, `/readyz`, `/metrics`; port 0 takes a free one",
    ),
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
      })
      .describe("URLs of gateways, separated by commas; any of them will do to price jobs and to book what they used"),
    ATELIER_INTERNAL_TOKEN: z
      .string()
      .min(16, "must have at least 16 characters")
      .optional()
      .describe(
        "what it and the gateways show each other, at least 16 characters; required where it listens beyond loopback",
      ),
    ATELIER_QUEUE: checked("must be sqlite:/folder/queue.db or nats://host:port", parseQueueAddress).describe(
      "where jobs and their items are kept: `sqlite:/path/queue.db` for one machine, or " +
        "`nats://host:4222` (`tls://...`), several servers separated by commas",
    ),
    ATELIER_QUEUE_PREFIX: z
      .string()
      .regex(/^[A-Za-z0-9_-]{1,64}$/, "must be 1 to 64 letters, digits, - and _")
      .default("ATELIER")
      .describe("what the names of everything kept on a NATS server begin with"),
    ATELIER_QUEUE_REPLICAS: fromEnv
      .integer({ min: 1, max: 5 })
      .default(1)
      .describe("copies of each stream that a NATS cluster keeps; 3 survives the loss of a server"),
    // Extended three times in its length: a pause of some seconds loses nothing, and a dead worker's items wait no longer.
    ATELIER_QUEUE_LEASE_MS: fromEnv
      .integer({ min: 1_000, max: 3_600_000 })
      .default(30_000)
      .describe("how long an item is a worker's without a sign of life; as the workers have it"),
    ATELIER_QUEUE_TIMEOUT_MS: fromEnv
      .integer({ min: 100, max: 60_000 })
      .default(5_000)
      .describe("how long the queue may take to answer"),
    ATELIER_OBJECTS: checked("must be file:/folder or s3://bucket/prefix", parseObjectsAddress).describe(
      "where sheets and pictures go: `file:/folder` or `s3://bucket/prefix`",
    ),
    ATELIER_S3_ENDPOINT: z
      .url({ protocol: /^https?$/, error: "must be a URL, such as https://storage.example:9000" })
      .optional()
      .meta({ description: "URL of an S3 that is not AWS's, such as `https://storage.example:9000`", unset: "AWS's" }),
    ATELIER_S3_REGION: z.string().min(1).default("us-east-1").describe("region of [the bucket](#a-bucket)"),
    ATELIER_S3_PATH_STYLE: fromEnv
      .boolean()
      .default(false)
      .describe(
        "`true`: the bucket is named in the URL's path and not in its host, as most S3 that is not AWS's wants it",
      ),
    // 100,000 lines of prompts of 1 KB take a fifth of it.
    ATELIER_JOB_UPLOAD_MAX: fromEnv
      .bytes()
      .default(512 * 1024 * 1024)
      .describe("largest sheet"),
    ATELIER_JOB_ITEMS_MAX: fromEnv
      .integer({ min: 1, max: 1_000_000 })
      .default(1_000_000)
      .describe("most pictures of one job"),
    ATELIER_JOBS_KEPT_MS: fromEnv
      .integer({ min: 60_000, max: 10 * 365 * 86_400_000 })
      .default(30 * 86_400_000)
      .describe("how long a job and its pictures are kept after its end, unless it says otherwise"),
    ATELIER_WEBHOOK_PRIVATE: z
      .enum(["allow"], { error: "must be allow, or unset" })
      .optional()
      .describe("`allow`: [webhooks](webhooks.md) may call addresses that are not public"),
    // Under the 30 s that Kubernetes gives a stopping pod.
    ATELIER_DRAIN_TIMEOUT_MS: fromEnv
      .integer({ min: 0, max: 3_600_000 })
      .default(10_000)
      .describe("how long a stopping service waits for answers that are under way"),
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

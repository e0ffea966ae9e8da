/**
 * Writes helm/atelier/values.schema.json: what the chart takes, with the services' own variables by their own names, as
 * their config.ts reads them. Helm refuses other values before anything is changed, and names them.
 */
import { gatewayEnvironment } from "@atelier/gateway/config";
import { jobsEnvironment } from "@atelier/jobs/config";
import { workerEnvironment } from "@atelier/worker/config";
import { z } from "zod";
import { writeOrCheck } from "./generated-file.ts";

type Schema = Readonly<Record<string, unknown>>;

/** Variables that the chart sets from other values: addresses, mounted files, devices. */
const WIRED = {
  gateway: [
    ...["ATELIER_LISTEN", "ATELIER_GRPC_LISTEN", "ATELIER_WORKERS", "ATELIER_REDIS", "ATELIER_REDIS_CA"],
    ...["ATELIER_REDIS_CERT", "ATELIER_REDIS_KEY", "ATELIER_TLS_CERT", "ATELIER_TLS_KEY", "ATELIER_WORKER_CA"],
    ...["ATELIER_WORKER_CERT", "ATELIER_WORKER_KEY", "ATELIER_WORKER_TLS_NAME", "ATELIER_JOBS", "ATELIER_KEYS_FILE"],
    ...["ATELIER_ANONYMOUS", "ATELIER_INTERNAL_TOKEN", "ATELIER_KEYS", "ATELIER_DATA_DIR"],
  ],
  worker: [
    ...["ATELIER_WORKER_ID", "ATELIER_WORKER_LISTEN", "ATELIER_WORKER_METRICS_LISTEN", "ATELIER_WORKER_POOL"],
    ...["ATELIER_WORKER_TLS_CERT", "ATELIER_WORKER_TLS_KEY", "ATELIER_WORKER_TLS_CLIENT_CA", "ATELIER_MODELS"],
    ...["ATELIER_DEVICE", "ATELIER_TENSORRT_CACHE_DIR", "ATELIER_STATE_DIR", "ATELIER_DRAIN_MS", "ATELIER_QUEUE"],
    ...["ATELIER_OBJECTS", "ATELIER_S3_ENDPOINT", "ATELIER_S3_REGION", "ATELIER_S3_PATH_STYLE"],
  ],
  jobs: [
    ...["ATELIER_JOBS_LISTEN", "ATELIER_GATEWAY", "ATELIER_INTERNAL_TOKEN", "ATELIER_QUEUE", "ATELIER_OBJECTS"],
    ...["ATELIER_S3_ENDPOINT", "ATELIER_S3_REGION", "ATELIER_S3_PATH_STYLE"],
  ],
};

/** Of tracing, which every service reads by OpenTelemetry's own names. */
const TRACING = /^OTEL_[A-Z_]+$/;

const text: Schema = { type: "string" };
const flag: Schema = { type: "boolean" };
const amount: Schema = { type: "integer", minimum: 0 };
const atLeastOne: Schema = { type: "integer", minimum: 1 };
const list: Schema = { type: "array" };
const free: Schema = { type: "object" };
const names: Schema = { type: "array", items: { type: "string", minLength: 1 }, minItems: 1 };
const share: Schema = { type: ["integer", "string"], pattern: "^[0-9]+%?$" };
const quantity: Schema = { type: ["string", "integer"], pattern: "^[0-9.]+([KMGTPE]i?|m)?$" };

const secretKey = closed({ name: { type: "string" }, key: { type: "string", minLength: 1 } });
const budget = closed({ maxUnavailable: share, minAvailable: share });
const resources = closed({ requests: free, limits: free });
const placing = {
  nodeSelector: free,
  tolerations: list,
  affinity: free,
  podAnnotations: free,
  priorityClassName: text,
};

const worker = {
  device: workerVariable("ATELIER_DEVICE"),
  gpu: closed({ enabled: { type: ["boolean", "null"] }, resource: text, nodeLabel: text, type: text }),
  serves: { type: "array", items: { enum: ["interactive", "bulk"] }, minItems: 1, uniqueItems: true },
  models: { type: "array", items: { type: "string", pattern: "^[A-Za-z0-9._-]+$" }, minItems: 1, uniqueItems: true },
  replicas: amount,
  spot: flag,
  drainSeconds: { type: "integer", minimum: 0, maximum: 3600 },
  config: variables(workerEnvironment, WIRED.worker),
  secrets: secretVariables(workerEnvironment, []),
  resources,
  modelCache: closed({
    kind: { enum: ["image", "emptyDir", "hostPath", "claim"] },
    hostPath: { type: "string", pattern: "^/" },
    claimName: text,
    sizeLimit: quantity,
    prePull: closed({ image: text, command: names }),
  }),
  autoscaling: closed({
    kind: { enum: ["none", "hpa", "keda"] },
    minReplicas: amount,
    maxReplicas: atLeastOne,
    targetSeconds: { type: "number", exclusiveMinimum: 0 },
    bulkTargetSeconds: { type: "number", minimum: 0 },
    scaleUpPodsPerMinute: atLeastOne,
    scaleDownStabilizationSeconds: { type: "integer", minimum: 0, maximum: 3600 },
    cooldownSeconds: amount,
  }),
  podDisruptionBudget: budget,
  topologySpread: flag,
  runtimeClassName: text,
  ...placing,
};

const schema: Schema = {
  $schema: "http://json-schema.org/draft-07/schema#",
  title: "Values of the chart of Atelier",
  ...closed({
    global: free, // Helm's own
    clusterDomain: { type: "string", minLength: 1 },
    image: closed({
      ...{ registry: { type: "string", pattern: "^$|/$" }, tag: text, pullSecrets: list },
      pullPolicy: { enum: ["Always", "IfNotPresent", "Never"] },
      ...{ gateway: text, worker: text, workerCuda: text, jobs: text, podCosts: text },
    }),
    gateway: closed({
      replicas: atLeastOne,
      config: variables(gatewayEnvironment, WIRED.gateway),
      secrets: secretVariables(gatewayEnvironment, ["ATELIER_KEYS"]),
      keys: closed({ secretName: text, key: { type: "string", minLength: 1 } }),
      anonymous: flag,
      tls: closed({ secretName: text }),
      service: closed({ type: { enum: ["ClusterIP", "NodePort", "LoadBalancer"] }, annotations: free }),
      resources,
      autoscaling: closed({
        ...{ enabled: flag, minReplicas: atLeastOne, maxReplicas: atLeastOne },
        targetCPUPercent: { type: "integer", minimum: 1, maximum: 100 },
      }),
      podDisruptionBudget: budget,
      ...placing,
    }),
    worker: closed(worker),
    pools: {
      type: "object",
      description: "Worker pools by name; a pool's values lie over those of worker.",
      propertyNames: { pattern: "^[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?$" },
      additionalProperties: closed(worker),
    },
    workerTls: closed({ gatewaySecret: text, workerSecret: text, name: text }),
    jobs: closed({
      enabled: flag,
      config: variables(jobsEnvironment, WIRED.jobs),
      secrets: secretVariables(jobsEnvironment, []),
      resources,
      ...placing,
    }),
    internalToken: closed({ secretName: text, key: { type: "string", minLength: 1 } }),
    objects: closed({
      address: { type: "string", pattern: "^file$|^s3://[^/]+(/.*)?$" },
      s3: closed({ endpoint: text, region: text, pathStyle: flag, credentialsSecret: text }),
      volume: closed({ claimName: text, storageClassName: text, accessModes: names, size: quantity }),
    }),
    redis: closed({
      ...{ enabled: flag, image: text, maxMemory: text, resources },
      external: closed({
        url: { type: "string", pattern: "^$|^redi(s|ss)(-cluster|-sentinel)?://[^@]+$" },
        secret: secretKey,
        tlsSecret: text,
      }),
    }),
    nats: closed({
      ...{ enabled: flag, image: text, storage: quantity, storageClassName: text, resources },
      external: closed({ url: { type: "string", pattern: "^$|^(nats|tls)://[^@]+$" }, secret: secretKey }),
    }),
    podCosts: closed({ enabled: flag, config: free, resources }),
    serviceAccount: closed({ annotations: free }),
    networkPolicy: closed({ enabled: flag, gatewayFrom: list, metricsFrom: list, egressTo: list }),
    ingress: closed({
      ...{ enabled: flag, className: text, annotations: free, tls: list },
      hosts: { type: "array", items: { type: "string", minLength: 1 } },
    }),
    httpRoute: closed({ enabled: flag, parentRefs: list, hostnames: list }),
    monitoring: closed({
      serviceMonitor: closed({
        enabled: flag,
        interval: { type: "string", pattern: "^[0-9]+(ms|s|m)$" },
        labels: free,
      }),
      rules: closed({ enabled: flag, labels: free }),
      dashboards: closed({ enabled: flag, label: text, folder: text }),
      prometheusUrl: { type: "string", pattern: "^https?://" },
      adapterRules: closed({ enabled: flag }),
    }),
  }),
};

writeOrCheck(new Map([["helm/atelier/values.schema.json", `${JSON.stringify(schema, null, 2)}\n`]]));

/** An object that takes these and nothing else. */
function closed(properties: Readonly<Record<string, Schema>>): Schema {
  return { type: "object", additionalProperties: false, properties };
}

function environmentSchema(environment: z.ZodType): Readonly<Record<string, Schema>> {
  const { properties } = z.toJSONSchema(environment, { io: "input", unrepresentable: "any" });
  return properties as Readonly<Record<string, Schema>>;
}

/** Variables that an operator may set by `config`, each as its own schema and as YAML would write it. */
function variables(environment: z.ZodType, wired: readonly string[]): Schema {
  const own = Object.entries(environmentSchema(environment)).filter(([name]) => !wired.includes(name));
  return {
    type: "object",
    additionalProperties: false,
    properties: Object.fromEntries(own.map(([name, each]) => [name, inYaml(each)])),
    patternProperties: { [TRACING.source]: text },
  };
}

/** Any variable may come out of a secret, but for those that the chart sets. */
function secretVariables(environment: z.ZodType, also: readonly string[]): Schema {
  const all = Object.keys(environmentSchema(environment));
  const wired = new Set(Object.values(WIRED).flat());
  const own = all.filter((name) => !wired.has(name) || also.includes(name));
  return {
    type: "object",
    additionalProperties: false,
    properties: Object.fromEntries(own.map((name) => [name, secretKey])),
    patternProperties: { [TRACING.source]: secretKey },
  };
}

function workerVariable(name: string): Schema {
  const { default: _, unset: __, ...schema } = environmentSchema(workerEnvironment)[name]!;
  return schema;
}

/** Environment variables are text; YAML has numbers and booleans for some of them. */
function inYaml({ default: _, unset: __, type, ...rest }: Schema): Schema {
  if (Array.isArray(rest["enum"]) && rest["enum"].includes("true")) return { enum: [true, false, "true", "false"] };
  if (type === "string" && rest["enum"] === undefined) return { ...rest, type: ["string", "integer", "number"] };
  return type === undefined ? rest : { ...rest, type };
}

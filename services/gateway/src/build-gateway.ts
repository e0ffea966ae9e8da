import { hostname } from "node:os";
import { type Clock, type InvariantError, newId, type Random } from "@atelier/core";
import { type TlsFileNames, TlsFiles } from "@atelier/rpc";
import type { Logger } from "@atelier/telemetry";
import { createAdmissionMetrics } from "./admission/admission-metrics.ts";
import { BrownOut } from "./admission/brown-out.ts";
import { DeviceAdmission } from "./admission/device-admission.ts";
import { buildApp, type GatewayApp } from "./app.ts";
import { openApproximate } from "./approximate/open-approximate.ts";
import { BackgroundGenerations } from "./background/background-generations.ts";
import { registerUnplaced } from "./backlog/backlog-metrics.ts";
import { openCache } from "./cache/open-cache.ts";
import { dnsNameOf, type GatewayConfig } from "./config.ts";
import { ByteBudget } from "./dispatch/byte-budget.ts";
import { Dispatcher } from "./dispatch/dispatcher.ts";
import { dnsDirectory } from "./fleet/dns-directory.ts";
import { Fleet } from "./fleet/fleet.ts";
import { WorkerClient } from "./fleet/worker-client.ts";
import { joinedDirectory, staticDirectory, type WorkerDirectory } from "./fleet/worker-directory.ts";
import { Generations } from "./generations/generations.ts";
import { withoutCache, withoutSimilarStarts } from "./generations/without.ts";
import { GenerationService } from "./grpc/generation-service.ts";
import { GrpcServer } from "./grpc/grpc-server.ts";
import { IdempotencyKeys } from "./http/idempotency-keys.ts";
import { InFlight } from "./in-flight.ts";
import { JobsUpstream } from "./jobs/jobs-upstream.ts";
import { createGatewayMetrics } from "./metrics.ts";
import { ModelAliases } from "./model-aliases.ts";
import { noteFailure } from "./note-failure.ts";
import { Balancer } from "./placement/balancer.ts";
import { FleetPlacer } from "./placement/fleet-placer.ts";
import { MemoryStore } from "./shared/memory-store.ts";
import { RedisLink } from "./shared/redis-link.ts";
import { createRedisMetrics } from "./shared/redis-metrics.ts";
import { RedisStore } from "./shared/redis-store.ts";
import type { SharedStore } from "./shared/shared-store.ts";
import { deviceMsPredictedBy } from "./tenants/device-time.ts";
import { Estimator } from "./tenants/estimate.ts";
import { openTenancy } from "./tenants/tenancy.ts";

/** A whole gateway, not listening yet. */
export interface Gateway {
  readonly app: GatewayApp;
  readonly fleet: Fleet;
  readonly inFlight: InFlight;
  /** Undefined where it is off. Not listening yet, as the app. */
  readonly grpc: GrpcServer | undefined;
  /** What gateways share: in Redis, or in this process where none is configured. */
  readonly store: SharedStore;
  /** Undefined where none is configured. */
  readonly redis: RedisLink | undefined;
  /** Lets go of everything but the app, which is closed before. */
  close(): Promise<void>;
}

export interface GatewayWorld {
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Logger;
  /** Told of a broken invariant after its caller was answered; a process stops on it. */
  readonly onBug: (bug: InvariantError) => void;
}

/** Answers under idempotency keys that a gateway keeps beside the shared ones: enough for some minutes without those. */
const OWN_ANSWERS_BYTES_MAX = 64 * 1024 * 1024;
/** Pictures of generations in the background, likewise. */
const OWN_PICTURES_BYTES_MAX = 128 * 1024 * 1024;

/** The parts as the configuration chooses them: which adapter stands behind which port. */
export async function buildGateway(config: GatewayConfig, world: GatewayWorld): Promise<Gateway> {
  const { clock, random } = world;
  const tlsFiles = config.tls && openTls("callers", config.tls, world);
  const workerTlsFiles = config.workerTls && openTls("workers", config.workerTls, world);
  const workerSecurity = workerTlsFiles && {
    credentials: workerTlsFiles.channelCredentials(),
    serverName: config.workerTls?.serverName,
  };
  const fleet = new Fleet({
    ...world,
    directory: directoryOf(config.workers, world),
    connect: (address) => new WorkerClient(address, workerSecurity),
  });
  const inFlight = new InFlight({ max: config.inFlightMax });
  const checkpoints = new ByteBudget(config.dispatch.checkpointBytesMax);
  const metrics = createGatewayMetrics({ fleet, inFlight, checkpoints, revision: config.revision });
  const redis =
    config.redis && (await RedisLink.open(config.redis, { ...world, metrics: createRedisMetrics(metrics.registry) }));
  const store = redis === undefined ? new MemoryStore(world.clock) : new RedisStore(redis);
  const placer = new FleetPlacer({
    fleet,
    balancer: new Balancer(random),
    clock,
    limits: { windowMs: Number.POSITIVE_INFINITY, waitingMax: config.inFlightMax },
    observer: metrics.placement,
  });
  registerUnplaced(metrics.registry, placer);
  const predictMs = deviceMsPredictedBy(placer);
  const tenancy = await openTenancy({
    ...world,
    config,
    redis,
    registry: metrics.registry,
    predictMs,
  }).catch((error: unknown) => {
    redis?.close(); // it would keep the process alive
    throw error;
  });
  const cache =
    config.cache && openCache({ ...world, config: config.cache, fleet, store, redis, registry: metrics.registry });
  const approximate =
    cache &&
    config.approximate &&
    openApproximate({
      ...world,
      config: config.approximate,
      fleet,
      shared: redis && store,
      exact: cache,
      registry: metrics.registry,
    });
  const { waitMaxMs, brownOutAfterMs } = config.admission;
  const brownOut = brownOutAfterMs === undefined ? undefined : new BrownOut({ clock, afterMs: brownOutAfterMs });
  const admission = new DeviceAdmission({
    placer,
    waitMaxMs,
    brownOut,
    metrics: createAdmissionMetrics(metrics.registry, brownOut),
  });
  const aliases = new ModelAliases(config.modelAliases);
  const generations = new Generations({
    fleet,
    aliases,
    inFlight,
    metrics: metrics.generations,
    clock,
    tenantLimits: tenancy.gate,
    cache: cache ?? withoutCache,
    similarStarts: approximate ?? withoutSimilarStarts,
    admission,
    log: world.log,
    dispatcher: new Dispatcher({
      ...world,
      placer,
      fleet,
      limits: { ...config.dispatch, retriesMax: config.inFlightMax },
      checkpoints,
      metrics: metrics.dispatch,
    }),
  });
  const shared = redis === undefined ? undefined : store;
  const background = new BackgroundGenerations({
    ...world,
    ...config,
    generations,
    gatewayId: newId(hostname()),
    own: shared === undefined ? store : new MemoryStore(world.clock, { bytesMax: OWN_PICTURES_BYTES_MAX }),
    shared,
    keptMs: config.generationsKeptMs,
    noteFailure: (thrown, id) => noteFailure(thrown, id, { ...config, ...world }),
    onEnd: (status) => metrics.background.inc({ status }),
  });
  const idempotencyKeys = new IdempotencyKeys({
    ...world,
    own: shared === undefined ? store : new MemoryStore(world.clock, { bytesMax: OWN_ANSWERS_BYTES_MAX }),
    shared,
    waitingMax: config.inFlightMax,
    leaseMs: config.leaseMs,
    note: (outcome) => metrics.idempotency.inc({ outcome }),
  });
  const jobs = config.jobs === undefined ? undefined : new JobsUpstream(config.jobs);
  const app = await buildApp({
    ...config,
    ...world,
    jobs,
    predictMs,
    fleet,
    aliases,
    inFlight,
    generations,
    metrics,
    authenticator: tenancy.authenticator,
    tenancy,
    cache,
    estimator: new Estimator({ ...tenancy, generations, placer, cache }),
    idempotencyKeys,
    background,
    tlsFiles,
  });
  const grpc =
    config.grpcListen &&
    new GrpcServer({
      ...config,
      ...world,
      service: new GenerationService({ ...config, ...world, generations, background, fleet }),
      authenticator: tenancy.authenticator,
      tlsFiles,
      metrics,
      noteFailure: (thrown, call) => noteFailure(thrown, call, { ...config, ...world }),
    });
  app.addHook("onListen", async () => tenancy.announce());
  return {
    app,
    fleet,
    inFlight,
    grpc,
    store,
    redis,
    close: async () => {
      background.close();
      fleet.close();
      approximate?.close();
      cache?.close();
      await jobs?.close();
      await tenancy.close();
      redis?.close();
      tlsFiles?.close();
      workerTlsFiles?.close();
    },
  };
}

/** Workers named one by one, and those behind names. */
function directoryOf(workers: readonly string[], world: GatewayWorld): WorkerDirectory {
  const named = workers.flatMap((worker) => dnsNameOf(worker) ?? []);
  const listed = workers.filter((worker) => dnsNameOf(worker) === undefined);
  return joinedDirectory([staticDirectory(listed), ...named.map((name) => dnsDirectory({ ...world, name }))]);
}

function openTls(towards: "callers" | "workers", files: TlsFileNames, { clock, log }: GatewayWorld): TlsFiles {
  return new TlsFiles(files, {
    clock,
    changed: (problem) => {
      if (problem === undefined) log.info({ towards }, "certificates were renewed");
      else log.warn({ towards, problem }, "renewed certificates are not fit for use; going on with the last ones");
    },
  });
}

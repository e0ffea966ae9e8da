import { randomBytes } from "node:crypto";
import { availableParallelism } from "node:os";
import { type Clock, systemClock } from "@atelier/core";
import { SMALL_HEAP } from "@atelier/lifecycle";
import { CliError } from "../cli-error.ts";
import { ChildService } from "./child-service.ts";
import { freePort, portProblem } from "./free-port.ts";
import { KeptService } from "./kept-service.ts";
import type { RestartLimits } from "./restart-budget.ts";

/** The files that are run: the services' main.ts, or stand-ins in tests. */
export interface ServiceEntries {
  readonly worker: string;
  readonly gateway: string;
  readonly redis: string;
  readonly nats: string;
  readonly jobs: string;
}

/** Where bulk jobs and their pictures are kept. */
export interface JobsOptions {
  /** What ATELIER_QUEUE says, or the folder in which a NATS of our own keeps what it holds. */
  readonly queue: string | { readonly natsFolder: string };
  /** What ATELIER_OBJECTS says. */
  readonly objects: string;
}

export interface LocalSystemOptions {
  readonly entries: ServiceEntries;
  readonly host: string;
  /** 0 takes a free one. A second gateway takes the next. */
  readonly port: number;
  /** One, with which everything ends; or several, each of which is started again when it dies. */
  readonly gateways: number;
  readonly workers: number;
  /** What gateways share: one that runs, one of our own, or what the environment says (`undefined`). */
  readonly redis: { readonly url: string } | "own" | undefined;
  /** Undefined: bulk jobs are not set up. */
  readonly jobs: JobsOptions | undefined;
  /** Where a gateway without Redis keeps what outlives it; undefined: as the environment says. */
  readonly dataDir: string | undefined;
  /** Folders of model bundles. */
  readonly models: readonly string[];
  readonly device: string;
  readonly logLevel: string;
  /** Told, a line at a time, what a person would want to know. */
  readonly report: (line: string) => void;
  readonly clock?: Clock;
  readonly restartLimits?: RestartLimits;
}

/** What programs written for OpenAI's API ask for when nobody tells them otherwise: here, the first model. */
const OPENAI_MODELS = [
  "gpt-image-1",
  "gpt-image-1-mini",
  "gpt-image-1.5",
  "gpt-image-2",
  "chatgpt-image-latest",
  "dall-e-2",
  "dall-e-3",
] as const;

/** Of the first gateway's gRPC API. */
const GRPC_PORT = 50_050;
/** An empty variable counts as unset: what is not ours to pull is not pulled. */
const NO_STORAGE = { ATELIER_QUEUE: "", ATELIER_OBJECTS: "" };
/** Loading a large model from a slow disk takes minutes; more than this is no start. */
const START_MAX_MS = 10 * 60_000;
/** The lease of an instance that was killed on another machine lapses in 6 s. */
const JOBS_START_MAX_MS = 15_000;
/**
 * Workers are stopped behind the gateways: what they still have are items of bulk jobs, and those go on from where they
 * stand at the next start. Who pressed Ctrl-C need not wait for their end.
 */
const WORKER_DRAIN_MS = 3_000;
/** A little over what the services give their work in flight (30 s), so that they end by themselves. */
const STOP_GRACE_MS = 35_000;

interface GatewayPlace {
  readonly workers: readonly string[];
  readonly redisUrl: string | undefined;
  readonly grpc: string;
  readonly jobsPlace: JobsPlace | undefined;
}

/** How the gateways and the jobs service find each other, whichever of them starts first. */
interface JobsPlace {
  /** host:port that the jobs service will listen on. */
  readonly listen: string;
  /** By which each knows the other. */
  readonly token: string;
  readonly storage: Readonly<Record<string, string>>;
}

/**
 * The whole system on this machine, each part a process: workers, one gateway or several in front of them, the jobs
 * service beside them, and Redis and NATS where they are to share these. What dies is started again at the same address,
 * since the others know it by that; only with a single gateway all of it ends.
 */
export class LocalSystem {
  readonly #options: LocalSystemOptions;
  readonly #clock: Clock;
  /** In the order in which they are stopped: nothing new is admitted while the workers finish what they hold. */
  readonly #services: {
    readonly gateway: KeptService[];
    readonly jobs: KeptService[];
    readonly worker: KeptService[];
    readonly redis: KeptService[];
    readonly nats: KeptService[];
  } = { gateway: [], jobs: [], worker: [], redis: [], nats: [] };
  readonly #broken = Promise.withResolvers<CliError>();
  #stopping = false;

  constructor(options: LocalSystemOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
  }

  /** Resolves if the system that had started can no longer serve. */
  get broken(): Promise<CliError> {
    return this.#broken.promise;
  }

  /** Where bulk jobs are kept; undefined where there are none. Of a system that has started. */
  get jobs(): JobsOptions | undefined {
    return this.#services.jobs.length === 0 ? undefined : this.#options.jobs;
  }

  /**
   * Starts everything and resolves to the gateways' URLs once each of them serves.
   * @throws CliError naming what did not start; whatever did start is stopped first.
   */
  async start(): Promise<readonly [string, ...string[]]> {
    const timeout = Promise.withResolvers<never>();
    const cancelTimeout = this.#clock.after(START_MAX_MS, () =>
      timeout.reject(new CliError(`the system was not ready within ${START_MAX_MS / 60_000} minutes`)),
    );
    try {
      return await Promise.race([this.#startAll(), timeout.promise]);
    } catch (error) {
      await this.stop();
      throw error;
    } finally {
      cancelTimeout();
    }
  }

  async #startAll(): Promise<readonly [string, ...string[]]> {
    const { report } = this.#options;
    const startingRedis = this.#startRedis();
    startingRedis.catch(() => {}); // awaited below
    // Workers are told where items wait, so what holds them comes first.
    const jobsPlace = await this.#placeForJobs();
    const workers = Array.from({ length: this.#options.workers }, (_, i) => this.#spawnWorker(`w${i + 1}`, jobsPlace));
    // Redis is waited for first: where it cannot be had, that is what there is to say.
    const redisUrl = await startingRedis;
    // A worker listens before it loads its models: the gateways start while they load.
    const addresses = await this.#listening(workers);
    for (const [i, { name }] of workers.entries()) report(`${name} at ${addresses[i]}: loading and warming up`);

    const grpc = await this.#grpcListen();
    const gateways = Array.from({ length: this.#options.gateways }, (_, i) =>
      this.#spawnGateway(i, { workers: addresses, redisUrl, grpc: grpc[i]!, jobsPlace }),
    );
    const urls = await this.#listening(gateways);
    for (const [i, { name, grpcAddress }] of gateways.entries()) {
      const both = grpcAddress === undefined ? urls[i] : `${urls[i]} and, for gRPC, ${grpcAddress}`;
      report(`${name} at ${both}: waiting for its workers`);
    }

    const jobs = jobsPlace === undefined ? [] : [this.#spawnJobs(jobsPlace, urls)];
    await Promise.all([
      ...[...gateways, ...workers].map(({ ready }) => ready),
      ...jobs.map((one) => this.#nearlyReady(one)),
    ]);
    for (const [i, worker] of workers.entries()) worker.keepAlive(addresses[i]!);
    for (const service of jobs) service.keepAlive(jobsPlace!.listen);
    const [only] = gateways;
    if (gateways.length > 1) for (const [i, gateway] of gateways.entries()) gateway.keepAlive(listenOf(urls[i]!));
    else void only!.ended.then((how) => this.#break(`the gateway is gone: ${how}`));
    return urls as [string, ...string[]];
  }

  /** The jobs service waits for its queue, and for another instance at it to end: nothing else has to wait for that. */
  async #nearlyReady(jobs: KeptService): Promise<void> {
    const late = Promise.withResolvers<void>();
    const cancel = this.#clock.after(JOBS_START_MAX_MS, () => {
      this.#options.report("jobs is not ready yet: what it waits for is in its log; the rest goes on without it");
      late.resolve();
    });
    await Promise.race([jobs.ready, late.promise]).finally(cancel);
  }

  /** Undefined where there are to be no bulk jobs, or no NATS for them is to be had. */
  async #placeForJobs(): Promise<JobsPlace | undefined> {
    const { jobs, report } = this.#options;
    if (jobs === undefined) return undefined;
    let queue: string;
    try {
      queue = typeof jobs.queue === "string" ? jobs.queue : await this.#startNats(jobs.queue.natsFolder);
    } catch (error) {
      if (this.#stopping || !(error instanceof CliError)) throw error;
      report(`bulk jobs are off: ${error.message}`);
      return undefined;
    }
    return {
      listen: `127.0.0.1:${await freePort("127.0.0.1")}`,
      token: randomBytes(32).toString("base64url"),
      storage: { ATELIER_QUEUE: queue, ATELIER_OBJECTS: jobs.objects },
    };
  }

  /** Resolves to its address for ATELIER_QUEUE. @throws CliError where it cannot be had. */
  async #startNats(folder: string): Promise<string> {
    const service = this.#spawn("nats", "nats", (listen) => ({
      entry: this.#options.entries.nats,
      env: { ATELIER_NATS_LISTEN: listen, ATELIER_NATS_FOLDER: folder },
    }));
    try {
      const [address] = await this.#listening([service]);
      await service.ready;
      service.keepAlive(address!);
      this.#options.report(`nats at nats://${address}`);
      return `nats://${address}`;
    } catch (error) {
      this.#services.nats.splice(0);
      throw error;
    }
  }

  /** Resolves to the URL for the gateways; undefined where the environment decides. */
  async #startRedis(): Promise<string | undefined> {
    const { redis, entries, report } = this.#options;
    if (redis !== "own") return redis?.url;
    const service = this.#spawn("redis", "redis", (listen) => ({
      entry: entries.redis,
      env: { ATELIER_REDIS_LISTEN: listen },
    }));
    const [address] = await this.#listening([service]);
    await service.ready;
    service.keepAlive(address!);
    report(`redis at redis://${address}`);
    return `redis://${address}`;
  }

  /** One for each gateway: as the environment says, or the usual ports of loopback where they are free. */
  async #grpcListen(): Promise<readonly string[]> {
    const { gateways, port } = this.#options;
    const { ATELIER_GRPC_LISTEN: given } = process.env;
    const places = Array.from({ length: gateways }, (_, i) => i);
    if (given !== undefined && given !== "")
      return places.map((i) => (i === 0 || given === "off" ? given : "127.0.0.1:0"));
    if (port === 0) return places.map(() => "127.0.0.1:0");
    return Promise.all(
      places.map(async (i) => {
        const usual = { host: "127.0.0.1", port: GRPC_PORT + i };
        const free = (await portProblem(usual)) === undefined;
        return `${usual.host}:${free ? usual.port : 0}`;
      }),
    );
  }

  #spawnJobs({ listen, token, storage }: JobsPlace, gatewayUrls: readonly string[]): KeptService {
    const { entries, logLevel } = this.#options;
    const spawn = (address: string) => ({
      entry: entries.jobs,
      execArgv: SMALL_HEAP,
      env: {
        ...storage,
        ATELIER_JOBS_LISTEN: address,
        ATELIER_GATEWAY: gatewayUrls.join(","),
        ATELIER_INTERNAL_TOKEN: token,
        ATELIER_LOG_LEVEL: logLevel,
      },
    });
    return this.#spawn("jobs", "jobs", spawn, listen);
  }

  #spawnWorker(id: string, jobsPlace: JobsPlace | undefined): KeptService {
    const { entries, models, device, logLevel, workers } = this.#options;
    return this.#spawn("worker", `worker ${id}`, (listen) => ({
      entry: entries.worker,
      env: {
        ATELIER_WORKER_ID: id,
        ATELIER_WORKER_LISTEN: listen,
        ATELIER_MODELS: models.join(","),
        ATELIER_DEVICE: device,
        ATELIER_LOG_LEVEL: logLevel,
        ...sharedThreads(workers),
        ATELIER_DRAIN_MS: process.env["ATELIER_DRAIN_MS"] || String(WORKER_DRAIN_MS),
        ...(jobsPlace?.storage ?? NO_STORAGE),
      },
    }));
  }

  #spawnGateway(index: number, { workers, redisUrl, grpc, jobsPlace }: GatewayPlace): KeptService {
    const { entries, logLevel, host, port, gateways, dataDir } = this.#options;
    const first = `${bracketed(host)}:${port === 0 ? 0 : port + index}`;
    const spawn = (listen: string) => ({
      entry: entries.gateway,
      env: {
        ATELIER_LISTEN: listen,
        ATELIER_GRPC_LISTEN: grpc,
        ATELIER_WORKERS: workers.join(","),
        ...(process.env["ATELIER_MODEL_ALIASES"] === undefined && { ATELIER_MODEL_ALIASES: OPENAI_MODELS.join(",") }),
        ATELIER_LOG_LEVEL: logLevel,
        ...(redisUrl === undefined ? {} : { ATELIER_REDIS: redisUrl }),
        ...(dataDir === undefined ? {} : { ATELIER_DATA_DIR: dataDir }),
        ATELIER_JOBS: jobsPlace === undefined ? "" : `http://${jobsPlace.listen}`,
        ATELIER_INTERNAL_TOKEN: jobsPlace?.token ?? "",
      },
    });
    return this.#spawn("gateway", gateways === 1 ? "gateway" : `gateway g${index + 1}`, spawn, first);
  }

  #spawn(
    kind: "gateway" | "jobs" | "worker" | "redis" | "nats",
    name: string,
    process: (listen: string) => { entry: string; env: Record<string, string>; execArgv?: readonly string[] },
    listen = "127.0.0.1:0",
  ): KeptService {
    const services = this.#services[kind];
    const service = new KeptService(
      {
        name,
        spawn: (address) => new ChildService({ name, ...process(address) }),
        clock: this.#clock,
        restartLimits: this.#options.restartLimits,
        report: this.#options.report,
        onGivenUp: () => {
          services.splice(services.indexOf(service), 1);
          // Without Redis the gateways go on, each for itself; without NATS or the jobs service, all but bulk jobs does.
          if (services.length === 0 && (kind === "gateway" || kind === "worker")) this.#break(`no ${kind} is left`);
        },
      },
      listen,
    );
    services.push(service);
    return service;
  }

  async #listening(services: readonly KeptService[]): Promise<string[]> {
    const addresses = await Promise.all(services.map((service) => service.listening));
    if (this.#stopping) throw new CliError("stopped while starting");
    return addresses;
  }

  #break(message: string): void {
    if (!this.#stopping) this.#broken.resolve(new CliError(message));
  }

  /** In order, what is behind last. */
  async stop(): Promise<void> {
    this.#stopping = true;
    for (const services of Object.values(this.#services)) {
      await Promise.all(services.map((service) => service.stop({ graceMs: STOP_GRACE_MS })));
    }
  }

  /** Ends every process at once. Resolves when they are gone. */
  async kill(): Promise<void> {
    this.#stopping = true;
    await Promise.all(
      Object.values(this.#services)
        .flat()
        .map((service) => service.kill()),
    );
  }
}

/** host:port out of the URL of a service that listens there. */
function listenOf(url: string): string {
  const { hostname, port, protocol } = new URL(url);
  return `${hostname}:${port || (protocol === "https:" ? 443 : 80)}`;
}

/** Several workers share the cores; one takes its own default, or what the user set for all. */
function sharedThreads(workers: number): Record<string, string> {
  const { ATELIER_THREADS: given } = process.env;
  if (workers === 1 || given !== undefined) return {};
  return { ATELIER_THREADS: String(Math.max(1, Math.floor(availableParallelism() / workers))) };
}

function bracketed(host: string): string {
  return host.includes(":") ? `[${host}]` : host;
}

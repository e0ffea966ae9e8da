import { availableParallelism } from "node:os";
import { type Clock, systemClock } from "@atelier/core";
import { CliError } from "../cli-error.ts";
import { ChildService } from "./child-service.ts";
import { portProblem } from "./free-port.ts";
import { KeptService } from "./kept-service.ts";
import type { RestartLimits } from "./restart-budget.ts";

/** The files that are run: the services' main.ts, or stand-ins in tests. */
export interface ServiceEntries {
  readonly worker: string;
  readonly gateway: string;
  readonly redis: string;
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
/** Loading a large model from a slow disk takes minutes; more than this is no start. */
const START_MAX_MS = 10 * 60_000;
/** A little over what the services give their work in flight (30 s), so that they end by themselves. */
const STOP_GRACE_MS = 35_000;

/**
 * The whole system on this machine, each part a process: workers, one gateway or several in front of them, and Redis
 * where they are to share one. What dies is started again at the same address, since the others know it by that; only
 * with a single gateway all of it ends.
 */
export class LocalSystem {
  readonly #options: LocalSystemOptions;
  readonly #clock: Clock;
  /** In the order in which they are stopped: nothing new is admitted while the workers finish what they hold. */
  readonly #services: {
    readonly gateway: KeptService[];
    readonly worker: KeptService[];
    readonly redis: KeptService[];
  } = { gateway: [], worker: [], redis: [] };
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
    const starting = this.#startRedis();
    const workers = Array.from({ length: this.#options.workers }, (_, i) => this.#spawnWorker(`w${i + 1}`));
    // Redis is waited for first: where it cannot be had, that is what there is to say.
    const redisUrl = await starting;
    // A worker listens before it loads its models: the gateways start while they load.
    const addresses = await this.#listening(workers);
    for (const [i, { name }] of workers.entries()) report(`${name} at ${addresses[i]}: loading and warming up`);

    const grpc = await this.#grpcListen();
    const gateways = Array.from({ length: this.#options.gateways }, (_, i) =>
      this.#spawnGateway(i, { workers: addresses, redisUrl, grpc: grpc[i]! }),
    );
    const urls = await this.#listening(gateways);
    for (const [i, { name, grpcAddress }] of gateways.entries()) {
      const both = grpcAddress === undefined ? urls[i] : `${urls[i]} and, for gRPC, ${grpcAddress}`;
      report(`${name} at ${both}: waiting for its workers`);
    }

    await Promise.all([...gateways, ...workers].map((service) => service.ready));
    for (const [i, worker] of workers.entries()) worker.keepAlive(addresses[i]!);
    const [only] = gateways;
    if (gateways.length > 1) for (const [i, gateway] of gateways.entries()) gateway.keepAlive(listenOf(urls[i]!));
    else void only!.ended.then((how) => this.#break(`the gateway is gone: ${how}`));
    return urls as [string, ...string[]];
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

  #spawnWorker(id: string): KeptService {
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
      },
    }));
  }

  #spawnGateway(
    index: number,
    { workers, redisUrl, grpc }: { workers: readonly string[]; redisUrl: string | undefined; grpc: string },
  ): KeptService {
    const { entries, logLevel, host, port, gateways } = this.#options;
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
      },
    });
    return this.#spawn("gateway", gateways === 1 ? "gateway" : `gateway g${index + 1}`, spawn, first);
  }

  #spawn(
    kind: "gateway" | "worker" | "redis",
    name: string,
    process: (listen: string) => { entry: string; env: Record<string, string> },
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
          // Without Redis the gateways go on, each for itself.
          if (services.length === 0 && kind !== "redis") this.#break(`no ${kind} is left`);
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

import { type Clock, InvariantError, type Random, ServingError } from "@atelier/core";
import type { Logger } from "@atelier/telemetry";
import type { Cluster, Redis } from "ioredis";
import { describeRedis, type RedisAddress } from "./redis-address.ts";
import { RedisCircuit } from "./redis-circuit.ts";
import { connectRedis, type RedisTls } from "./redis-client.ts";
import type { RedisMetrics } from "./redis-metrics.ts";
import { StoreUnavailable } from "./shared-store.ts";

export type RedisClient = Redis | Cluster;

export interface RedisConfig {
  readonly address: RedisAddress;
  readonly tls: RedisTls;
  /** Before every key and channel, so that several systems can share one Redis. */
  readonly prefix: string;
  /** How long an operation may take; a request waits for none longer. */
  readonly timeoutMs: number;
}

export interface RedisWorld {
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Logger;
  readonly metrics: RedisMetrics;
}

/** How long a start waits for the first connection before it goes on without. */
const FIRST_CONNECTION_MS = 1_000;
/** Subscriptions are told again so often: costs nothing where they stand, and mends those that a failover lost. */
const RESUBSCRIBE_MS = 5_000;
/** A Redis that refuses command after command is told of once in this time. */
const REFUSALS_LOGGED_EVERY_MS = 60_000;

/**
 * The connection to Redis that everything in a gateway shares. Nothing queues in it: what cannot be answered in time
 * is rejected with StoreUnavailable, and after a few such failures everything is, at once, until Redis answers again.
 * A rejected command may have been carried out all the same: its answer was lost, not necessarily it.
 */
export class RedisLink {
  readonly #config: RedisConfig;
  readonly #world: RedisWorld;
  readonly #circuit: RedisCircuit;
  readonly #client: RedisClient;
  /** A connection that listens can do nothing else. */
  readonly #subscriber: RedisClient;
  readonly #listeners = new Map<string, Set<(message: string) => void>>();
  #lastConnectionError: unknown;
  #refusalLoggedMs = Number.NEGATIVE_INFINITY;
  #everUp = false;
  #cancelResubscribe: () => void = () => {};
  #closed = false;

  private constructor(config: RedisConfig, world: RedisWorld) {
    this.#config = config;
    this.#world = world;
    this.#client = connectRedis(config, world.random);
    this.#subscriber = connectRedis(config, world.random);
    this.#circuit = new RedisCircuit({
      ...world,
      probe: () => this.#inTime(this.#client.ping()),
      changed: ({ open }, why) => this.#tell({ open }, why),
    });
    world.metrics.up.set(0);
    for (const client of [this.#client, this.#subscriber]) {
      // Kept for the line that says that Redis is lost: each attempt to reconnect brings another.
      client.on("error", (error: unknown) => {
        this.#lastConnectionError = error;
      });
    }
    this.#client.on("ready", () => void this.#circuit.probe());
    this.#subscriber.on("ready", () => void this.#subscribeAll());
    this.#subscriber.on("message", (channel: string, message: string) => {
      for (const listener of this.#listeners.get(channel) ?? []) listener(message);
    });
  }

  /**
   * Resolves once connected, or after a moment without: a gateway starts where Redis is down.
   *
   * @throws ConfigError naming a certificate file that cannot be read.
   */
  static async open(config: RedisConfig, world: RedisWorld): Promise<RedisLink> {
    const link = new RedisLink(config, world);
    await link.#connect();
    return link;
  }

  /** Whether the next command will be tried. */
  get up(): boolean {
    return !this.#circuit.open;
  }

  /** `parts` as one key, with the prefix. Of keys with the same `{tag}` in them a cluster keeps all in one place. */
  key(...parts: readonly string[]): string {
    return this.#config.prefix + parts.join(":");
  }

  /** @throws StoreUnavailable where `op` got no answer in time, or Redis refused the command. */
  async run<T>(op: (client: RedisClient) => Promise<T>): Promise<T> {
    if (this.#circuit.open) throw this.#failed("open", undefined);
    try {
      const answer = await this.#inTime(op(this.#client));
      this.#circuit.succeeded();
      return answer;
    } catch (error) {
      const kind = failureOf(error);
      if (kind === "ours") throw error;
      // A refusal is an answer: Redis is there, and the next command may well be served.
      if (kind !== "refused" && kind !== "full") this.#circuit.failed(error);
      else this.#tellRefusal(error);
      throw this.#failed(kind, error);
    }
  }

  /** Hears what is published on `channel` from the moment the subscription stands; the result ends it. */
  subscribe(channel: string, listener: (message: string) => void): () => void {
    const key = this.key(channel);
    const listeners = this.#listeners.get(key) ?? new Set();
    const own = (message: string) => listener(message); // one listener may subscribe twice
    listeners.add(own);
    if (!this.#listeners.has(key)) {
      this.#listeners.set(key, listeners);
      void this.#subscribeAll();
    }
    return () => {
      listeners.delete(own);
      if (listeners.size > 0 || this.#listeners.get(key) !== listeners) return;
      this.#listeners.delete(key);
      // Where this fails, messages come that nobody hears.
      this.#subscriber.unsubscribe(key).catch(() => {});
    };
  }

  close(): void {
    this.#closed = true;
    this.#circuit.close();
    this.#cancelResubscribe();
    this.#client.disconnect();
    this.#subscriber.disconnect();
  }

  async #connect(): Promise<void> {
    const { clock, log } = this.#world;
    const connected = new Promise<void>((resolve) => {
      // ioredis goes on trying by itself; what failed is kept by the "error" listener.
      for (const client of [this.#client, this.#subscriber]) client.connect().catch(() => {});
      this.#client.once("ready", () => this.#circuit.probe().then(resolve));
      this.#cancelResubscribe = clock.after(FIRST_CONNECTION_MS, resolve);
    });
    await connected;
    this.#cancelResubscribe();
    this.#resubscribeLater();
    if (!this.#circuit.open) return;
    void this.#circuit.probe(); // and so on from there
    const why = messageOf(this.#lastConnectionError ?? "no answer");
    log.warn({ redis: describeRedis(this.#config.address), why }, "redis cannot be reached; going on without it");
  }

  /** Does nothing where the connection does not stand: it is called again when it does. */
  async #subscribeAll(): Promise<void> {
    const channels = [...this.#listeners.keys()];
    if (channels.length === 0 || this.#subscriber.status !== "ready") return;
    // What fails here is tried again by #resubscribeLater, and a lost connection says so by itself.
    await this.#subscriber.subscribe(...channels).catch(() => {});
  }

  #resubscribeLater(): void {
    if (this.#closed) return;
    this.#cancelResubscribe = this.#world.clock.after(RESUBSCRIBE_MS, () => {
      void this.#subscribeAll();
      this.#resubscribeLater();
    });
  }

  #inTime<T>(answer: Promise<T>): Promise<T> {
    const { timeoutMs } = this.#config;
    return new Promise<T>((resolve, reject) => {
      const cancel = this.#world.clock.after(timeoutMs, () => reject(new Timeout(`no answer within ${timeoutMs} ms`)));
      answer.then(resolve, reject).finally(cancel);
    });
  }

  #failed(kind: RedisFailure, cause: unknown): StoreUnavailable {
    this.#world.metrics.failures.inc({ kind });
    const why = kind === "open" ? "it did not answer of late" : messageOf(cause);
    return new StoreUnavailable(`redis cannot be asked: ${why}`, { cause });
  }

  #tell({ open }: { open: boolean }, why: unknown): void {
    const { log, metrics } = this.#world;
    metrics.up.set(open ? 0 : 1);
    const redis = describeRedis(this.#config.address);
    if (open) log.warn({ redis, why: messageOf(why) }, "redis is lost; going on without it");
    else log.info({ redis }, this.#everUp ? "redis is back" : "redis is connected");
    this.#everUp = true;
  }

  #tellRefusal(error: unknown): void {
    const { clock, log } = this.#world;
    if (clock.nowMs() - this.#refusalLoggedMs < REFUSALS_LOGGED_EVERY_MS) return;
    this.#refusalLoggedMs = clock.nowMs();
    log.warn({ redis: describeRedis(this.#config.address), why: messageOf(error) }, "redis refuses commands");
  }
}

/** `open`: not even tried. `full`: Redis has no memory left for a value. `refused`: any other reply that is an error. */
export type RedisFailure = "timeout" | "connection" | "full" | "refused" | "open";

class Timeout extends Error {}

function failureOf(error: unknown): RedisFailure | "ours" {
  if (error instanceof Timeout) return "timeout";
  if (error instanceof InvariantError || error instanceof ServingError) return "ours";
  if (error instanceof TypeError || error instanceof RangeError || error instanceof ReferenceError) return "ours";
  if (!(error instanceof Error) || error.name !== "ReplyError") return "connection";
  return error.message.startsWith("OOM") ? "full" : "refused";
}

/** The address of a node that refused is in it; passwords are not. */
function messageOf(error: unknown): string {
  return error instanceof Error ? error.message || error.name : String(error);
}

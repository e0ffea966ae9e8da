import type { Clock, Random } from "@atelier/core";
import { currentSpan, type TraceContext, traced } from "@atelier/telemetry";
import { PRIORITY_CLASSES, type PriorityClass } from "../caller.ts";
import { withSeed } from "../complete-request.ts";
import type { GenerationContext, Make, MakeLimits, ResultCache, Served, ServiceOrder } from "../generations/ports.ts";
import type { CompleteRequest, Generation, ImageRequest } from "../image-request.ts";
import { type SharedStore, StoreUnavailable } from "../shared/shared-store.ts";
import type { AskCounts } from "./ask-counts.ts";
import { approximateKeyOf, type CacheScope, keeperOf, keyOf, pictureDigest, variantSeed } from "./cache-key.ts";
import type { CacheMetrics, KeptOutcome } from "./cache-metrics.ts";
import { Flight } from "./flight.ts";
import { type KeptResult, readKept, type Subject, writeKept } from "./kept-result.ts";
import type { MemoryResults } from "./memory-results.ts";
import { matches, PurgeLog, type PurgeRule } from "./purge-log.ts";
import type { SharedResults } from "./redis-results.ts";
import { SharedFlights } from "./shared-flights.ts";

export interface ExactCacheOptions {
  readonly clock: Clock;
  readonly random: Random;
  readonly config: CacheRules;
  /** The digest of a model's bundle; undefined where it is not known. */
  readonly modelDigest: (model: string) => string | undefined;
  readonly memory: MemoryResults;
  readonly ownAsks: AskCounts;
  /** For what gateways tell each other; in this process where there is only one. */
  readonly store: SharedStore;
  /** What gateways share; undefined where there is only one. */
  readonly shared: { readonly results: SharedResults; readonly asks: AskCounts } | undefined;
  readonly metrics: CacheMetrics;
}

export interface CacheRules {
  readonly scope: CacheScope;
  readonly ttlMs: number;
  /** Different results for one request without a seed; 0: each is new. */
  readonly variants: number;
  /** Of late, before a result is kept. */
  readonly minAsks: number;
  readonly leaseMs: number;
}

/** Results at hand, of those that a request may have: its seed's, or one of its variants. */
export interface Peeked {
  readonly kept: number;
  readonly of: number;
}

type Context = GenerationContext & { readonly order: ServiceOrder };

/** How long a result that is not kept is there for another gateway that waits for it. */
const HANDED_OVER_MS = 10_000;

/**
 * Results as they were made, by all that decides what is drawn: at hand in this gateway, behind that in Redis. What is
 * not there is made once, however many ask for it at how many gateways; and kept once it was asked for often enough.
 */
export class ExactCache implements ResultCache {
  readonly #options: ExactCacheOptions;
  readonly #purges: PurgeLog;
  readonly #sharedFlights: SharedFlights | undefined;
  readonly #flights = new Map<string, Airborne>();
  /** Questions to Redis that are under way, by key. */
  readonly #looks = new Map<string, Promise<KeptResult | undefined>>();

  constructor(options: ExactCacheOptions) {
    this.#options = options;
    const { store, clock, config, shared } = options;
    const onRules = () => this.#sweepHere();
    this.#purges = new PurgeLog({ store, clock, ttlMs: config.ttlMs, onRules });
    this.#sharedFlights = shared && new SharedFlights({ store, clock, leaseMs: config.leaseMs });
  }

  get scope(): CacheScope {
    return this.#options.config.scope;
  }

  /** What was purged, for all that is kept of results. */
  get purges(): Pick<PurgeLog, "newest" | "covers"> {
    return this.#purges;
  }

  close(): void {
    this.#purges.close();
    this.#sharedFlights?.close();
  }

  async serve(asked: CompleteRequest, context: Context, make: Make): Promise<Served> {
    const served = await this.#serve(asked, context, make);
    this.#options.metrics.requests.inc({ outcome: served.outcome });
    return served;
  }

  /** How many of the results that a request may have are at hand; undefined where none is kept of its like. Counts nothing. */
  async peek(asked: CompleteRequest, tenant: string): Promise<Peeked | undefined> {
    const about = this.#aboutOf(asked, tenant);
    const { variants } = this.#options.config;
    if (about === undefined || (asked.seed === undefined && variants === 0)) return undefined;
    const seeds =
      asked.seed === undefined
        ? Array.from({ length: variants }, (_, i) => variantSeed(about.digest, i))
        : [asked.seed];
    const found = await Promise.all(
      seeds.map(async (seed) => {
        const want = wanted(about, seed, EXACT);
        return this.#kept(want) ?? (await this.#lookFor(want));
      }),
    );
    return { kept: found.filter((result) => result !== undefined).length, of: seeds.length };
  }

  /** @throws ServingError OVERLOADED where other gateways cannot be told. */
  async purge(rule: PurgeRule): Promise<Purged> {
    const { memory, shared } = this.#options;
    const before = memory.count;
    await this.#purges.purge(rule);
    const inMemory = before - memory.count;
    // The rule holds by now: this only frees the room.
    const inRedis = shared && (await orWithout(() => shared.results.sweep((subject) => matches(rule, subject))));
    return { inMemory, inRedis };
  }

  async size(): Promise<CacheSize> {
    const { memory, shared } = this.#options;
    return {
      memory: { results: memory.count, bytes: memory.bytes, bytesMax: memory.bytesMax },
      redis: shared && (await orWithout(() => shared.results.size())),
      purges: this.#purges.count,
    };
  }

  async #serve(asked: CompleteRequest, context: Context, make: Make): Promise<Served> {
    const { config } = this.#options;
    const { read, store } = context.cache;
    const about = this.#aboutOf(asked, context.caller.tenant);
    if (about === undefined || (!read && !store)) return this.#makeAlone(asked, context, make);
    if (!read) return this.#makeAndKeep(about, context, make);
    if (asked.seed !== undefined) return this.#serveOne(wanted(about, asked.seed, context.cache), context, make);
    if (config.variants === 0) return this.#makeAlone(asked, context, make, "miss");
    return this.#serveVariant(about, context, make);
  }

  /** Undefined where nothing is kept of its like. */
  #aboutOf(asked: CompleteRequest, tenant: string): About | undefined {
    const { config, modelDigest: digestOf } = this.#options;
    const modelDigest = digestOf(asked.model);
    if (modelDigest === undefined || asked.startLatent !== undefined) return undefined;
    const keeper = keeperOf(tenant, config.scope);
    const subject: Subject = {
      keeper,
      model: asked.model,
      adapters: asked.adapters.map(({ name }) => name),
      prompt: asked.prompt.normalize("NFC"),
    };
    return { asked, modelDigest, subject, digest: pictureDigest(asked, { modelDigest, keeper }) };
  }

  /** What the caller wants neither read nor kept. */
  async #makeAlone(
    asked: CompleteRequest,
    context: Context,
    make: Make,
    outcome: Served["outcome"] = "bypass",
  ): Promise<Served> {
    const request = withSeed(asked, asked.seed ?? this.#newSeed());
    const { order, deadline, signal, onEvent } = context;
    const generation = await make(request, { order, deadline, signal, onEvent });
    return { request, generation, outcome: isExact(generation) ? outcome : "approximate" };
  }

  /** What the caller wants made anew, and would share. Without a seed that is a picture that nobody has seen. */
  async #makeAndKeep(about: About, context: Context, make: Make): Promise<Served> {
    const want = wanted(about, about.asked.seed ?? this.#newSeed(), context.cache);
    const { order, deadline, signal, onEvent } = context;
    const asks = this.#count(want);
    const kept = await this.#make(want, make, { order, deadline, signal, onEvent });
    void this.#keep(want, kept, await asks);
    return {
      request: want.request,
      generation: kept.generation,
      outcome: isExact(kept.generation) ? "bypass" : "approximate",
    };
  }

  async #serveOne(want: Wanted, context: Context, make: Make): Promise<Served> {
    const found = await traced("cache.lookup", async (span) => {
      const kept = (await this.#atHand(want)) ?? (await this.#lookFor(want));
      span.set({ "atelier.cache.found": kept !== undefined });
      return kept;
    });
    return found === undefined ? this.#fly(want, context, make) : hit(want, found);
  }

  /**
   * One of the few results that a request without a seed may have, by chance. A missing one is made for whoever draws it
   * first; who draws it while it is made gets another that is there, and waits only where there is none.
   */
  async #serveVariant(about: About, context: Context, make: Make): Promise<Served> {
    const { random, config } = this.#options;
    const drawn = Math.floor(random.next() * config.variants);
    const variant = (offset: number) =>
      wanted(about, variantSeed(about.digest, (drawn + offset) % config.variants), context.cache);
    const first = variant(0);
    const found = await traced("cache.lookup", async (span) => {
      const served = await this.#findVariant(variant, context);
      span.set({ "atelier.cache.found": served !== undefined, "atelier.cache.variants": config.variants });
      return served;
    });
    return found ?? this.#fly(first, context, make);
  }

  async #findVariant(variant: (offset: number) => Wanted, context: Context): Promise<Served | undefined> {
    const { config } = this.#options;
    const first = variant(0);
    const here = await this.#atHand(first);
    if (here !== undefined) return hit(first, here);

    const inFlight = () => this.#airborne(first, context) !== undefined;
    const found = inFlight() ? undefined : await this.#lookFor(first);
    if (found !== undefined) return hit(first, found);
    if (inFlight() || (await this.#sharedFlights?.busy(flightId(first, context, context.order.priority)))) {
      for (let offset = 1; offset < config.variants; offset++) {
        const other = variant(offset);
        const there = this.#kept(other) ?? (await this.#lookFor(other));
        if (there !== undefined) return hit(other, there);
      }
    }
    return undefined;
  }

  /** With all who want the same at this moment. */
  async #fly(want: Wanted, context: Context, make: Make): Promise<Served> {
    const late = this.#kept(want); // made while we asked Redis
    if (late !== undefined) return hit(want, late);
    const { deadline, signal, onEvent } = context;
    if (!context.cache.store) return this.#makeAlone(want.request, context, make, "miss");

    const underWay = this.#airborne(want, context);
    currentSpan().link(underWay?.trace); // what makes it is another request's
    const airborne = underWay ?? this.#start(want, context, make);
    const asks = Promise.all([airborne.asks, this.#count(want)]);
    airborne.asks = asks.then((counts) => Math.max(...counts));
    const previews = want.request.previewEvery !== undefined;
    const { result, first } = await airborne.flight.join({ deadline, signal, onEvent, previews });
    const { generation } = result.kept;
    if (!first || !result.made) return { request: want.request, generation, outcome: "shared" };
    return { request: want.request, generation, outcome: isExact(generation) ? "miss" : "approximate" };
  }

  /** What is under way for `want` and at least as urgent. */
  #airborne(want: Wanted, context: Context): Airborne | undefined {
    const classes = PRIORITY_CLASSES.slice(0, PRIORITY_CLASSES.indexOf(context.order.priority) + 1);
    const found = classes.map((priority) => this.#flights.get(flightId(want, context, priority)));
    return found.find((airborne) => airborne?.flight.open);
  }

  #start(want: Wanted, context: Context, make: Make): Airborne {
    const { clock } = this.#options;
    const { order } = context;
    const id = flightId(want, context, order.priority);
    const airborne: Airborne = {
      flight: new Flight<Landing>({
        clock,
        order,
        fly: (limits) => this.#makeOnce(id, want, make, limits, () => airborne.asks),
        onEnd: () => this.#flights.get(id) === airborne && this.#flights.delete(id),
      }),
      subject: want.subject,
      bornAt: this.#purges.newest,
      trace: currentSpan().context,
      asks: Promise.resolve(0),
    };
    this.#flights.set(id, airborne);
    return airborne;
  }

  /** By this gateway or another. */
  async #makeOnce(
    id: string,
    want: Wanted,
    make: Make,
    limits: MakeLimits,
    asks: () => Promise<number>,
  ): Promise<Landing> {
    const makeAndKeep = async (): Promise<Landing> => {
      const kept = await this.#make(want, make, limits);
      const keeping = this.#keep(want, kept, await asks());
      return { kept, made: true, inRedis: keeping };
    };
    if (this.#sharedFlights === undefined) return makeAndKeep();
    const { store } = this.#options;
    const handedOver = `cache:handed:${id}`;
    const { result, made } = await this.#sharedFlights.fly<Landing>(
      id,
      {
        look: async () => {
          const kept = await this.#lookFor(want);
          if (kept !== undefined) return { kept, made: false, inRedis: Promise.resolve(true) };
          const handed = await orWithout(() => store.get(handedOver));
          const read = handed && readKept(want.key, handed);
          if (read === undefined || this.#purges.covers(read.subject, read.bornAt)) return undefined;
          return { kept: read, made: false, inRedis: Promise.resolve(false) };
        },
        make: makeAndKeep,
        handOver: async ({ kept, inRedis }) => {
          if (await inRedis) return;
          await store.set(handedOver, writeKept(want.key, kept), { ttlMs: HANDED_OVER_MS });
        },
      },
      limits,
    );
    // Those who asked here may be what was missing to its being kept.
    if (!made && !(await result.inRedis)) void this.#keep(want, result.kept, await asks());
    return { ...result, made };
  }

  async #make(want: Wanted, make: Make, limits: MakeLimits): Promise<KeptResult> {
    const bornAt = this.#purges.newest;
    const generation = await make(want.request, limits);
    const { clock, config } = this.#options;
    return { generation, subject: want.subject, bornAt, untilMs: clock.nowMs() + config.ttlMs };
  }

  /** At hand at once, in Redis by and by: resolves to whether it is there. Never rejects. */
  async #keep(want: Wanted, kept: KeptResult, asks: number): Promise<boolean> {
    const { memory, shared, metrics, config, clock } = this.#options;
    const key = isExact(kept.generation) ? want.key : want.approximateKey;
    const judge = (): KeptOutcome => {
      if (key === undefined) return "approximate";
      if (kept.generation.receipt.modelDigest !== want.modelDigest) return "other_model";
      if (this.#purges.covers(kept.subject, kept.bornAt)) return "purged";
      return asks < config.minAsks ? "rare" : "kept";
    };
    const outcome = judge();
    metrics.results.inc({ outcome });
    if (outcome !== "kept" || key === undefined) return false;
    memory.set(key, kept);
    if (shared === undefined) return false;
    const about = { subject: kept.subject, ttlMs: kept.untilMs - clock.nowMs() };
    const value = writeKept(key, kept);
    return (await orWithout(() => shared.results.set(key, value, about).then(() => true))) ?? false;
  }

  /**
   * In memory; given with all else that came in this turn of the event loop. One request after another from its socket
   * to its answer takes half as much again of the processor as all of a turn together, and the last waits far longer.
   */
  async #atHand(want: Wanted): Promise<KeptResult | undefined> {
    const kept = this.#kept(want);
    if (kept !== undefined) await new Promise((resolve) => setImmediate(resolve));
    return kept;
  }

  /** In memory: the exact one, or else one that will do. */
  #kept({ key, approximateKey }: Wanted): KeptResult | undefined {
    const { memory } = this.#options;
    return memory.get(key) ?? (approximateKey === undefined ? undefined : memory.get(approximateKey));
  }

  async #lookFor({ key, approximateKey }: Wanted): Promise<KeptResult | undefined> {
    if (approximateKey === undefined) return this.#look(key);
    const [exact, approximate] = await Promise.all([this.#look(key), this.#look(approximateKey)]);
    return exact ?? approximate;
  }

  /** In Redis; what is found is at hand from then on. */
  #look(key: string): Promise<KeptResult | undefined> {
    const { shared } = this.#options;
    if (shared === undefined) return Promise.resolve(undefined);
    const under = this.#looks.get(key);
    if (under !== undefined) return under;
    const look = orWithout(() => this.#lookInRedis(key, shared.results)).finally(() => this.#looks.delete(key));
    this.#looks.set(key, look);
    return look;
  }

  async #lookInRedis(key: string, results: SharedResults): Promise<KeptResult | undefined> {
    const { memory, metrics, clock } = this.#options;
    const bytes = await results.get(key);
    if (bytes === undefined) return undefined;
    const kept = readKept(key, bytes);
    if (kept === undefined) metrics.damaged.inc();
    if (kept === undefined || this.#purges.covers(kept.subject, kept.bornAt)) {
      await results.delete(key);
      return undefined;
    }
    if (kept.untilMs <= clock.nowMs()) return undefined;
    memory.set(key, kept);
    return kept;
  }

  /** How often it was asked of late, this time included: here, or anywhere where that can be found out. */
  async #count(want: Wanted): Promise<number> {
    const { ownAsks, shared, config } = this.#options;
    if (config.minAsks <= 1) return 1;
    const [own, all] = await Promise.all([
      ownAsks.add(want.countedAs),
      shared && orWithout(() => shared.asks.add(want.countedAs)),
    ]);
    return Math.max(own, all ?? 0);
  }

  /** Nobody joins what was begun before its like was purged. */
  #sweepHere(): void {
    const { covers } = this.#purges;
    this.#options.memory.sweep(covers);
    for (const [id, { subject, bornAt }] of this.#flights) if (covers(subject, bornAt)) this.#flights.delete(id);
  }

  #newSeed(): number {
    return Math.floor(this.#options.random.next() * 2 ** 32);
  }
}

export interface Purged {
  readonly inMemory: number;
  /** Undefined where there is no Redis, or it could not be asked. */
  readonly inRedis: number | undefined;
}

export interface CacheSize {
  readonly memory: { readonly results: number; readonly bytes: number; readonly bytesMax: number };
  readonly redis: { readonly count: number; readonly bytes: number } | undefined;
  readonly purges: number;
}

interface About {
  readonly asked: CompleteRequest;
  readonly modelDigest: string;
  readonly subject: Subject;
  readonly digest: string;
}

/** One result that would do. */
interface Wanted {
  readonly key: string;
  /** Of one that began from a similar prompt's latent; undefined where only the exact one will do. */
  readonly approximateKey: string | undefined;
  readonly request: ImageRequest;
  readonly modelDigest: string;
  readonly subject: Subject;
  /** Requests without a seed count together, whichever variant they draw. */
  readonly countedAs: string;
}

interface Airborne {
  readonly flight: Flight<Landing>;
  readonly subject: Subject;
  readonly bornAt: number;
  /** Of the request that it began with. */
  readonly trace: TraceContext | undefined;
  /** How often it was asked, as far as is known. */
  asks: Promise<number>;
}

interface Landing {
  readonly kept: KeptResult;
  /** Here, and not by another gateway. */
  readonly made: boolean;
  readonly inRedis: Promise<boolean>;
}

const EXACT = { approximate: false };

function wanted({ asked, digest, modelDigest, subject }: About, seed: number, { approximate }: typeof EXACT): Wanted {
  const key = keyOf(digest, seed);
  const approximateKey = approximate ? approximateKeyOf(digest, seed) : undefined;
  const countedAs = asked.seed === undefined ? digest : key;
  return { key, approximateKey, countedAs, modelDigest, subject, request: withSeed(asked, seed) };
}

/** Those who would take a similar one's latent to begin with may get another picture than those who would not. */
function flightId({ key }: Wanted, { cache }: Context, priority: PriorityClass): string {
  return `${key}:${priority}${cache.approximate ? ":approximate" : ""}`;
}

function hit({ request }: Wanted, { generation }: KeptResult): Served {
  return { request, generation, outcome: "hit" };
}

/** Nothing but the request decided what it looks like. */
function isExact({ receipt }: Generation): boolean {
  return receipt.reusedSteps === 0;
}

async function orWithout<T>(ask: () => Promise<T>): Promise<T | undefined> {
  try {
    return await ask();
  } catch (error) {
    if (error instanceof StoreUnavailable) return undefined;
    throw error;
  }
}

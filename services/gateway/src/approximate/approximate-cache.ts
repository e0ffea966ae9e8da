import { type Clock, invariant, newId, ServingError, sha256 } from "@atelier/core";
import { LRUCache } from "lru-cache";
import { type CacheScope, keeperOf } from "../cache/cache-key.ts";
import type { Subject } from "../cache/kept-result.ts";
import type { CacheUse, Make, MakeLimits, SimilarStarts } from "../generations/ports.ts";
import type { Generation, ImageRequest, StartLatent } from "../image-request.ts";
import { type SharedStore, StoreUnavailable } from "../shared/shared-store.ts";
import type { ApproximateMetrics, LookupOutcome } from "./approximate-metrics.ts";
import type { KeptLatents } from "./kept-latents.ts";
import { type KeptStep, type LatentEntry, readNews, writeNews } from "./latent-entry.ts";
import type { LatentIndex, Neighbour } from "./latent-index.ts";
import { PassingLatents } from "./passing-latents.ts";
import type { Text } from "./prompt-embeddings.ts";
import { checkpointEvery, fractionOf, type ReuseRule, stepOf, usefulSteps } from "./reuse-table.ts";
import { scopeDigest } from "./scope-digest.ts";

/** When a picture may begin from a similar prompt's: where its request says so, or always. */
export const APPROXIMATE_MODES = ["on-request", "always"] as const;
export type ApproximateMode = (typeof APPROXIMATE_MODES)[number];

export interface ApproximateCacheOptions {
  readonly clock: Clock;
  readonly mode: ApproximateMode;
  readonly scope: CacheScope;
  readonly ttlMs: number;
  /** What was learned of a model; empty: nothing, and no picture of it begins so. */
  readonly tableOf: (model: string) => readonly ReuseRule[];
  /** Keeps latents, and tells other gateways of them. */
  readonly store: SharedStore;
  readonly latents: KeptLatents;
  readonly index: LatentIndex;
  readonly embeddings: { of(text: Text): Promise<Float32Array | undefined> };
  /** The digest of a model's bundle; undefined where it is not known. */
  readonly modelDigest: (model: string) => string | undefined;
  readonly purges: { readonly newest: number; covers(subject: Subject, bornAt: number): boolean };
  readonly metrics: ApproximateMetrics;
}

const CHANNEL = "approximate:entries";
/** Keeping goes on after the answer; what would be more at once is not kept. */
const KEEPING_MAX = 64;
/** Those who have allowed it lately, for whom latents are kept. */
const USERS_MAX = 10_000;

/**
 * Pictures that begin from a similar prompt's latent, some steps on, instead of from noise.
 *
 * Latents are kept of pictures that were made whole: what began from another's is no start for a third, or the
 * differences would add up. Nor is another seed of the same prompt one: whoever asks for that wants another picture.
 */
export class ApproximateCache implements SimilarStarts {
  readonly #options: ApproximateCacheOptions;
  readonly #endSubscription: () => void;
  /** Until when (ms since the epoch) latents are kept for a keeper and model. */
  readonly #users = new LRUCache<string, number>({ max: USERS_MAX });
  #keeping = 0;

  constructor(options: ApproximateCacheOptions) {
    this.#options = options;
    this.#endSubscription = options.store.subscribe(CHANNEL, (text) => this.#hear(text));
  }

  close(): void {
    this.#endSubscription();
  }

  allowed(use: CacheUse): boolean {
    return use.read && (use.approximate || this.#options.mode === "always");
  }

  async make(image: ImageRequest, limits: MakeLimits, use: CacheUse, make: Make): Promise<Generation> {
    const about = this.#aboutOf(image, limits);
    if (about === undefined) return make(image, limits);
    if (use.approximate) {
      this.#note(about);
      const begun = await this.#makeFromAnother(about, limits, make);
      if (begun !== undefined) return begun;
    }
    return use.store && this.#worthKeeping(about) ? this.#makeAndKeep(about, limits, make) : make(image, limits);
  }

  /** Undefined where nothing is kept of its like. */
  #aboutOf(image: ImageRequest, { order }: MakeLimits): About | undefined {
    const { scope, modelDigest: digestOf, purges, tableOf } = this.#options;
    const modelDigest = digestOf(image.model);
    const table = tableOf(image.model);
    if (modelDigest === undefined || table.length === 0) return undefined;
    if (image.initPicture !== undefined || image.startLatent !== undefined) return undefined;
    const keeper = keeperOf(order.tenant, scope);
    const prompt = image.prompt.normalize("NFC");
    const adapters = image.adapters.map(({ name }) => name);
    return {
      image,
      modelDigest,
      table,
      subject: { keeper, model: image.model, adapters, prompt },
      scope: scopeDigest(image, { modelDigest, keeper }),
      bornAt: purges.newest,
    };
  }

  /** Undefined where there is nothing to begin from. */
  async #makeFromAnother(about: About, limits: MakeLimits, make: Make): Promise<Generation | undefined> {
    const { index, metrics } = this.#options;
    const found = await this.#startOf(about);
    if (typeof found === "string") {
      metrics.lookups.inc({ outcome: found });
      return undefined;
    }
    const { entry, startLatent } = found;
    try {
      const generation = await make({ ...about.image, startLatent }, limits);
      index.touch(entry);
      // A worker that knows nothing of it makes the picture whole.
      const { reusedSteps } = generation.receipt;
      metrics.lookups.inc({ outcome: reusedSteps > 0 ? "used" : "refused" });
      metrics.stepsReused.inc(reusedSteps);
      return generation;
    } catch (error) {
      // Not the caller's mistake: it never asked for this latent.
      if (!(error instanceof ServingError && error.code === "INVALID_REQUEST")) throw error;
      this.#drop(entry);
      metrics.lookups.inc({ outcome: "refused" });
      return undefined;
    }
  }

  async #startOf(about: About): Promise<Start | LookupOutcome> {
    const { index, latents, embeddings } = this.#options;
    // The pictures of one request would be one picture, if they all began from one latent.
    if (about.image.numImages > 1) return "none";
    const embedding = await embeddings.of({ ...about.image, modelDigest: about.modelDigest });
    if (embedding === undefined) return "no_embedding";
    const near = index.nearest(about.scope, embedding).filter((neighbour) => this.#mayStart(neighbour, about));
    if (near.length === 0) return "none";
    const { entry, similarity } = chosen(near, about.image.seed);
    const step = lastBy(entry.steps, stepOf(about.image.steps, fractionOf(similarity, about.table)));
    if (step === undefined) return "unlike";
    const latent = await latents.get(entry, step);
    if (latent === undefined) {
      this.#drop(entry);
      return "lost";
    }
    const { channels, height, width, modelDigest, simulated } = entry;
    const { stepIndex } = step;
    return { entry, startLatent: { latent, channels, height, width, stepIndex, modelDigest, simulated } };
  }

  #mayStart({ entry }: Neighbour, { subject, modelDigest }: About): boolean {
    const { purges } = this.#options;
    invariant(entry.subject.keeper === subject.keeper && entry.modelDigest === modelDigest, "a scope is one keeper's");
    if (!purges.covers(entry.subject, entry.bornAt)) return entry.subject.prompt !== subject.prompt;
    this.#drop(entry);
    return false;
  }

  #drop(entry: LatentEntry): void {
    this.#options.index.remove(entry);
    void this.#options.latents.delete(entry);
  }

  async #makeAndKeep(about: About, limits: MakeLimits, make: Make): Promise<Generation> {
    const { table } = about;
    const { steps } = about.image;
    const passing = new PassingLatents(about.modelDigest, usefulSteps(steps, table));
    const onCheckpoint: MakeLimits["onCheckpoint"] = (latent) => {
      limits.onCheckpoint?.(latent);
      passing.see(latent);
    };
    const generation = await make(about.image, {
      ...limits,
      onCheckpoint,
      checkpointEvery: checkpointEvery(steps, table),
    });
    void this.#keep(about, generation, passing);
    return generation;
  }

  /** Nobody waits for it. */
  async #keep(about: About, { receipt }: Generation, passing: PassingLatents): Promise<void> {
    const { clock, ttlMs, embeddings, latents, index, purges, store } = this.#options;
    const all = passing.all();
    const [first] = all;
    if (first === undefined || receipt.modelDigest !== about.modelDigest) return;
    if (this.#keeping >= KEEPING_MAX) return;
    this.#keeping += 1;
    try {
      const embedding = await embeddings.of({ ...about.image, modelDigest: about.modelDigest });
      if (embedding === undefined || purges.covers(about.subject, about.bornAt)) return;
      const { channels, height, width } = first;
      const { scope, subject, bornAt, modelDigest, image } = about;
      const entry: LatentEntry = {
        id: newId("latent"),
        scope,
        subject,
        bornAt,
        modelDigest,
        simulated: receipt.simulated,
        seed: image.seed,
        untilMs: clock.nowMs() + ttlMs,
        embedding,
        channels,
        height,
        width,
        steps: all.map(({ stepIndex, latent }) => ({ stepIndex, digest: sha256(latent) })),
      };
      if (index.full(entry)) return;
      const put = all.map(({ stepIndex, latent }) => latents.put(entry.id, stepIndex, latent, { ttlMs }));
      if (!(await Promise.all(put)).every(Boolean)) return;
      if (!index.add(entry)) return await latents.delete(entry);
      const news = writeNews(entry);
      if (news !== undefined) await store.publish(CHANNEL, news);
    } catch (error) {
      // The others do without it.
      if (!(error instanceof StoreUnavailable)) throw error;
    } finally {
      this.#keeping -= 1;
    }
  }

  /** From another gateway, or of this one's own. */
  #hear(text: string): void {
    const entry = readNews(text);
    if (entry === undefined || this.#options.purges.covers(entry.subject, entry.bornAt)) return;
    this.#options.index.add(entry);
    this.#note(entry);
  }

  #note(about: Pick<About, "subject" | "modelDigest">): void {
    this.#users.set(userOf(about), this.#options.clock.nowMs() + this.#options.ttlMs);
  }

  #worthKeeping(about: About): boolean {
    const { mode, clock, index } = this.#options;
    const used = mode === "always" || (this.#users.get(userOf(about)) ?? 0) > clock.nowMs();
    return used && !index.full({ ...about, seed: about.image.seed });
  }
}

interface About {
  readonly image: ImageRequest;
  readonly modelDigest: string;
  readonly table: readonly ReuseRule[];
  readonly subject: Subject;
  readonly scope: string;
  readonly bornAt: number;
}

interface Start {
  readonly entry: LatentEntry;
  readonly startLatent: StartLatent;
}

/** Of the most alike prompt's seeds the same one, or one by the seed, so that other seeds come to other pictures. */
function chosen(near: readonly Neighbour[], seed: number): Neighbour {
  const same = near.filter(({ entry }) => entry.subject.prompt === near[0]!.entry.subject.prompt);
  const bySeed = same.toSorted((a, b) => a.entry.seed - b.entry.seed);
  return bySeed.find(({ entry }) => entry.seed === seed) ?? bySeed[seed % bySeed.length]!;
}

/** The last of the kept steps that is not beyond `step`. */
function lastBy(kept: readonly KeptStep[], step: number): KeptStep | undefined {
  return kept.findLast(({ stepIndex }) => stepIndex <= step);
}

const userOf = ({ subject, modelDigest }: Pick<About, "subject" | "modelDigest">): string =>
  `${subject.keeper}\n${modelDigest}`;

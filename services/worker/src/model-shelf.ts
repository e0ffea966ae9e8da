import { type Clock, type Deadline, invariant, ServingError, toServingError } from "@atelier/core";
import { bytesText } from "./memory/bytes.ts";
import type { MemoryBudget, MemoryDemand } from "./memory/memory-budget.ts";

export type ModelStatus = "on-disk" | "loading" | "resident" | "unloading";

/** Where a model is, for those who watch. */
export interface ModelPlace {
  readonly id: string;
  readonly status: ModelStatus;
  /** Of a load, 0..1. */
  readonly progress: number;
  readonly weightsBytes: number;
  /** How long a load takes, as learned or from its size. */
  readonly loadMs: number;
  /** Why the last load failed. */
  readonly error: ServingError | undefined;
}

/** What the shelf has done by others. */
export interface ShelfIo {
  /**
   * Opens the model's networks and warms them up; `onOpened` hears of the file bytes of each that is open. Where it
   * fails nothing of the model stays.
   */
  open(id: string, onOpened: (fileBytes: number) => void): Promise<void>;
  /** Releases the networks of a model that is open. */
  close(id: string): Promise<void>;
}

export interface ModelShelfOptions {
  /** In the order in which they are told. */
  readonly models: readonly { readonly id: string; readonly fileBytes: number }[];
  readonly budget: MemoryBudget;
  readonly io: ShelfIo;
  readonly clock: Clock;
  /** What the device may take before it reads any weights, beyond the ordinary: building engines, say. */
  readonly preparationMaxMs?: number;
  /** Hears of every change of a place, and of a load's progress. */
  readonly onChange: () => void;
  /** Hears of every load that ended, and how; of one that ran late when its deadline passed. */
  readonly onLoadEnded?: ((id: string, ms: number, failure: ServingError | undefined) => void) | undefined;
}

/** A model that somebody needs. It is not evicted before `release()`. */
export interface Claim {
  /** Resolves when the model is resident; rejects with the load's failure, the signal's reason, or DEADLINE_EXCEEDED. */
  ready(until: { readonly signal: AbortSignal; readonly deadline: Deadline }): Promise<void>;
  release(): void;
}

const GIB = 2 ** 30;
/** From a cold disk of some 300 MB/s; a first guess for `loadMs`, learned at the first load. */
const LOAD_MS = { base: 2000, perGib: 4000 };
/** A load that takes longer has failed. */
const DEADLINE_MS = { base: 30_000, perGib: 20_000, timesLearned: 5 };
/** After a failure the next load of a request waits: 1 s, doubled with every further failure. */
const BACK_OFF_MS = { first: 1000, most: 60_000 };
/** How often a load's progress is told between its networks. */
const TICK_MS = 250;

/**
 * Which models are in memory: on disk -> loading -> resident -> unloading -> on disk. Loads what requests ask for, and
 * makes room by evicting those that nobody uses, the longest unused first. Knows nothing of networks or images.
 *
 * Room is made for one claim at a time, so that two never count on the same bytes; loads run beside one another.
 */
export class ModelShelf {
  readonly #entries: ReadonlyMap<string, Entry>;
  readonly #budget: MemoryBudget;
  readonly #io: ShelfIo;
  readonly #clock: Clock;
  readonly #preparationMaxMs: number;
  readonly #onChange: () => void;
  readonly #onLoadEnded: ModelShelfOptions["onLoadEnded"];
  #turn: Promise<unknown> = Promise.resolve();

  constructor({ models, budget, io, clock, preparationMaxMs = 0, onChange, onLoadEnded }: ModelShelfOptions) {
    this.#entries = new Map(models.map(({ id, fileBytes }) => [id, new Entry(id, fileBytes)]));
    this.#budget = budget;
    this.#io = io;
    this.#clock = clock;
    this.#preparationMaxMs = preparationMaxMs;
    this.#onChange = onChange;
    this.#onLoadEnded = onLoadEnded;
  }

  get places(): readonly ModelPlace[] {
    return [...this.#entries.values()].map((entry) => ({
      id: entry.id,
      status: entry.status,
      progress: this.#progressOf(entry),
      weightsBytes: this.#budget.weightsBytes(entry.id),
      loadMs: entry.expectedLoadMs,
      error: entry.error,
    }));
  }

  /**
   * Makes room for a request and begins the load of its model where it is on disk. Resolves when that is decided, long
   * before a load ends.
   *
   * @throws ServingError INVALID_REQUEST or OUT_OF_MEMORY where it never fits; OVERLOADED where it does not fit beside
   *   models in use; MODEL_NOT_FOUND; the last load's failure while it may not be tried again.
   */
  async claim(id: string, demand: MemoryDemand): Promise<Claim> {
    const entry = this.#entry(id);
    this.#budget.check(id, demand);
    this.#checkBackOff(entry);
    return this.#claim(entry, demand);
  }

  /**
   * Keeps a model that is resident where it is, for work that needs no memory to speak of. The result lets it go.
   *
   * @throws ServingError MODEL_NOT_FOUND; NO_WORKER where the model is not resident: nothing is loaded for it.
   */
  hold(id: string): () => void {
    const entry = this.#entry(id);
    if (entry.status !== "resident") {
      throw new ServingError("NO_WORKER", `model "${id}" is not in memory here (${entry.status})`, { field: "model" });
    }
    entry.users += 1;
    return () => this.#release(entry);
  }

  /** Loads a model now, back-off or not, and resolves when it is resident. @throws ServingError as `claim` and `ready`. */
  async load(id: string, until: { readonly signal: AbortSignal; readonly deadline: Deadline }): Promise<void> {
    const entry = this.#entry(id);
    const demand = this.#budget.warmUpDemand(id);
    this.#budget.check(id, demand);
    const claim = await this.#claim(entry, demand);
    try {
      await claim.ready(until);
    } finally {
      claim.release();
    }
  }

  /** True where a load would need no eviction. */
  hasRoomFor(id: string): boolean {
    return this.#budget.fits(id, this.#budget.warmUpDemand(this.#entry(id).id));
  }

  /**
   * Takes an idle model out of memory; resolves to the bytes that are free then, 0 where it was on disk.
   *
   * @throws ServingError MODEL_NOT_FOUND; OVERLOADED while it is loaded or requests of it are in flight, naming how many.
   */
  unload(id: string): Promise<number> {
    const entry = this.#entry(id);
    return this.#inTurn(async () => {
      if (entry.status === "loading") throw overloaded(`model "${id}" is being loaded`);
      if (entry.users > 0) {
        const requests = entry.users === 1 ? "1 request is" : `${entry.users} requests are`;
        throw overloaded(`model "${id}" is in use: ${requests} in flight`);
      }
      if (entry.status !== "resident") return 0;
      const before = this.#budget.usedBytes;
      await this.#evict(entry);
      return before - this.#budget.usedBytes;
    });
  }

  /** Resolves when no load and no eviction is under way. */
  async settled(): Promise<void> {
    await this.#turn;
    await Promise.allSettled([...this.#entries.values()].map((entry) => entry.work));
  }

  #entry(id: string): Entry {
    const entry = this.#entries.get(id);
    if (entry !== undefined) return entry;
    const known = [...this.#entries.keys()].join(", ");
    throw new ServingError("MODEL_NOT_FOUND", `model "${id}" is not here; this worker has ${known}`, {
      field: "model",
    });
  }

  #checkBackOff({ status, error, retryAtMs }: Entry): void {
    const leftMs = retryAtMs - this.#clock.nowMs();
    if (error === undefined || status === "resident" || status === "loading") return;
    if (status === "unloading") throw error; // a load that ran past its deadline and has not ended yet
    if (leftMs <= 0) return;
    const message = `${error.detail} (it may be tried again in ${Math.ceil(leftMs / 1000)} s)`;
    throw new ServingError(error.code, message, { cause: error });
  }

  async #claim(entry: Entry, demand: MemoryDemand): Promise<Claim> {
    entry.users += 1; // from here on it is nobody's victim
    try {
      await this.#inTurn(() => this.#admit(entry, demand));
    } catch (error) {
      this.#release(entry);
      throw error;
    }
    let released = false;
    return {
      ready: ({ signal, deadline }) => this.#ready(entry, signal, deadline),
      release: () => {
        invariant(!released, "a claim is released once");
        released = true;
        this.#release(entry);
      },
    };
  }

  #release(entry: Entry): void {
    entry.users -= 1;
    entry.usedAtMs = this.#clock.nowMs();
    this.#onChange();
  }

  async #admit(entry: Entry, demand: MemoryDemand): Promise<void> {
    if (entry.status === "unloading") throw entry.error ?? overloaded(`model "${entry.id}" is being unloaded`);
    const idle = [...this.#entries.values()]
      .filter(({ status, users }) => status === "resident" && users === 0)
      .sort((a, b) => a.usedAtMs - b.usedAtMs);
    const victims = this.#budget.victims(
      entry.id,
      demand,
      idle.map(({ id }) => id),
    );
    if (victims === undefined) throw overloaded(this.#noRoom(entry));
    for (const id of victims) await this.#evict(this.#entry(id));
    this.#budget.hold(entry.id, demand);
    if (entry.status === "on-disk") this.#load(entry);
  }

  #noRoom(entry: Entry): string {
    const inTheWay = [...this.#entries.values()].filter((other) => other !== entry && other.status !== "on-disk");
    const busy = inTheWay.map(({ id, status }) => (status === "resident" ? id : `${id} (${status})`)).join(", ");
    const free = bytesText(Math.max(0, this.#budget.budgetBytes - this.#budget.usedBytes));
    return `no room for model "${entry.id}" beside what is in use: ${free} free of ${bytesText(this.#budget.budgetBytes)}; in memory: ${busy}`;
  }

  async #evict(entry: Entry): Promise<void> {
    invariant(entry.status === "resident" && entry.users === 0, "only idle models are evicted");
    entry.status = "unloading";
    this.#onChange();
    entry.work = this.#io.close(entry.id);
    await entry.work;
    entry.status = "on-disk";
    this.#budget.letGo(entry.id);
    this.#onChange();
  }

  #load(entry: Entry): void {
    invariant(entry.status === "on-disk", "a model is loaded from disk");
    entry.begin(this.#clock.nowMs());
    const loaded = Promise.withResolvers<void>();
    loaded.promise.catch(() => {}); // told to those who wait, and in `error`
    entry.loaded = loaded.promise;
    entry.work = this.#open(entry, loaded);
    this.#onChange();
  }

  async #open(entry: Entry, { resolve, reject }: PromiseWithResolvers<void>): Promise<void> {
    const { id } = entry;
    const deadlineMs = this.#preparationMaxMs + entry.loadDeadlineMs;
    const beganAtMs = this.#clock.nowMs();
    const ended = (failed?: ServingError) => this.#onLoadEnded?.(id, this.#clock.nowMs() - beganAtMs, failed);
    let late: ServingError | undefined;
    const stopTicks = this.#tick();
    const stopTimer = this.#clock.after(deadlineMs, () => {
      const message = `loading model "${id}" took longer than ${Math.round(deadlineMs / 1000)} s`;
      late = new ServingError("DEADLINE_EXCEEDED", message);
      stopTicks();
      ended(late);
      entry.failed(late, this.#clock.nowMs());
      entry.status = "unloading"; // and still counted: its networks may yet open
      this.#onChange();
      reject(late);
    });
    let failure: ServingError | undefined;
    try {
      await this.#io.open(id, (fileBytes) => {
        entry.opened(fileBytes, this.#clock.nowMs());
        this.#onChange();
      });
      if (late !== undefined) await this.#io.close(id);
    } catch (error) {
      failure = toServingError(error);
    }
    stopTicks();
    stopTimer();

    const nowMs = this.#clock.nowMs();
    if (late === undefined) ended(failure);
    if (failure === undefined && late === undefined) {
      entry.succeeded(nowMs);
      resolve();
    } else {
      const error = late ?? failure!;
      entry.failed(error, nowMs);
      entry.status = "on-disk";
      this.#budget.letGo(id);
      reject(error);
    }
    this.#onChange();
  }

  #tick(): () => void {
    let takeBack: () => void;
    const next = () => {
      takeBack = this.#clock.after(TICK_MS, () => {
        next();
        this.#onChange();
      });
    };
    next();
    return () => takeBack();
  }

  async #ready(entry: Entry, signal: AbortSignal, deadline: Deadline): Promise<void> {
    if (signal.aborted) throw toServingError(signal.reason);
    if (entry.status === "resident") return;
    deadline.check(`loading model "${entry.id}"`);
    const gaveUp = Promise.withResolvers<never>();
    const onAbort = () => gaveUp.reject(toServingError(signal.reason));
    const stopTimer = this.#clock.after(deadline.leftMs, () =>
      gaveUp.reject(new ServingError("DEADLINE_EXCEEDED", `no time left while model "${entry.id}" was being loaded`)),
    );
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      await Promise.race([entry.loaded, gaveUp.promise]);
    } finally {
      stopTimer();
      signal.removeEventListener("abort", onAbort);
    }
  }

  /** What is done is sure; between two networks time tells, up to two thirds of what is left. */
  #progressOf(entry: Entry): number {
    if (entry.status !== "loading") return entry.status === "resident" ? 1 : 0;
    const sure = 0.9 * (entry.openedBytes / Math.max(1, entry.fileBytes)); // the last tenth is the warm-up
    const sinceMs = this.#clock.nowMs() - entry.openedAtMs;
    const guessed = sure + (2 / 3) * (1 - sure) * Math.min(1, sinceMs / entry.expectedLoadMs);
    entry.shown = Math.max(entry.shown, Math.min(0.99, guessed));
    return entry.shown;
  }

  #inTurn<Result>(work: () => Promise<Result>): Promise<Result> {
    const done = this.#turn.then(work);
    this.#turn = done.catch(() => {});
    return done;
  }
}

/** One model's place, and what was learned of its loads. */
class Entry {
  readonly id: string;
  readonly fileBytes: number;
  status: ModelStatus = "on-disk";
  /** Claims that were not released. */
  users = 0;
  usedAtMs = 0;
  error: ServingError | undefined;
  retryAtMs = 0;
  /** Of the load under way. */
  loaded: Promise<void> = Promise.resolve();
  /** What must end before the networks are as `status` says. */
  work: Promise<void> = Promise.resolve();
  openedBytes = 0;
  openedAtMs = 0;
  shown = 0;
  #learnedLoadMs: number | undefined;
  #startedAtMs = 0;
  #failures = 0;

  constructor(id: string, fileBytes: number) {
    this.id = id;
    this.fileBytes = fileBytes;
  }

  get expectedLoadMs(): number {
    return this.#learnedLoadMs ?? LOAD_MS.base + LOAD_MS.perGib * (this.fileBytes / GIB);
  }

  get loadDeadlineMs(): number {
    const bySize = DEADLINE_MS.base + DEADLINE_MS.perGib * (this.fileBytes / GIB);
    return Math.max(bySize, DEADLINE_MS.timesLearned * (this.#learnedLoadMs ?? 0));
  }

  begin(nowMs: number): void {
    this.status = "loading";
    this.#startedAtMs = nowMs;
    this.openedAtMs = nowMs;
    this.openedBytes = 0;
    this.shown = 0;
  }

  opened(fileBytes: number, nowMs: number): void {
    this.openedBytes += fileBytes;
    this.openedAtMs = nowMs;
  }

  succeeded(nowMs: number): void {
    this.status = "resident";
    this.usedAtMs = nowMs;
    this.error = undefined;
    this.#failures = 0;
    this.#learnedLoadMs = Math.max(1, nowMs - this.#startedAtMs);
  }

  /** Told once or, for a load that ran late, when it ran late and when it ended: one failure either way. */
  failed(error: ServingError, nowMs: number): void {
    if (this.status === "loading") this.#failures += 1;
    this.error = error;
    this.retryAtMs = nowMs + Math.min(BACK_OFF_MS.most, BACK_OFF_MS.first * 2 ** (this.#failures - 1));
  }
}

function overloaded(message: string): ServingError {
  return new ServingError("OVERLOADED", message);
}

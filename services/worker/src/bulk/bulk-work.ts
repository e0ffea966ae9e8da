import { invariant } from "@atelier/core";

/** Classes that items may have, the more urgent first. */
export const ITEM_CLASSES = ["standard", "bulk"] as const;
export type ItemClass = (typeof ITEM_CLASSES)[number];

/** Items of one class and model wait in one line. */
export interface Lane {
  readonly itemClass: ItemClass;
  readonly model: string;
}

/** What the queue is to be asked for. */
export interface Ask extends Lane {
  readonly max: number;
  /** 0: what is there now. */
  readonly waitMs: number;
}

/** The worker as it is now. */
export interface WorkerView {
  readonly models: readonly ModelView[];
  /** Pictures of requests that have step batches ahead of them; items are not among them. */
  readonly requestsDenoising: number;
  /** A request waits for memory that models of items keep. Absent: none does. */
  readonly crowded?: boolean;
}

export interface ModelView {
  readonly id: string;
  /** In memory, or on its way there. */
  readonly resident: boolean;
  /** Of one on disk: there is memory for it beside those that are resident. */
  readonly fits: boolean;
  readonly loadMs: number;
  /** Pictures that its lanes' step batches hold together. */
  readonly sideBySide: number;
}

/** The items that the worker has. */
export interface HeldItems {
  readonly all: number;
  /** Those that have step batches ahead of them. */
  readonly denoising: number;
}

/** What waits for a model in the queue, of either class. */
export interface Waiting {
  readonly model: string;
  readonly itemClass: ItemClass;
  readonly oldestMs: number;
}

interface LaneState {
  readonly lane: Lane;
  /** What it was asked for and has not answered; 0: nothing. */
  asked: number;
  /** When it last had less than it was asked for; undefined: there may be more. */
  drySinceMs: number | undefined;
}

/** How long an ask waits at a lane that had nothing. */
const LISTEN_MS = 2_000;
/** One of several models with work is served for so long: a step batch holds pictures of one model. */
const TURN_MS = 5_000;
/** Models that were loaded for items stay for so many load times, and so long at least, before items evict them. */
const STAY_LOADS = 10;
const STAY_MS_MIN = 60_000;

/**
 * When to pull items, how many and of what. Does no I/O; time is an argument.
 *
 * Wanted are as many as the step batches hold, and once more as many, so that when a whole batch ends at one time the
 * next is there, its texts encoded. Requests count before items: while they fill the step batches nothing is pulled, and
 * what was pulled gives way to them at every step.
 *
 * Which: the more urgent class first, of models in memory. A lane that had nothing is listened at, one item at a time,
 * and those behind it are asked meanwhile. A model on disk gets its turn when nothing has waited for those in memory for
 * as long as half its load takes; or, where it waits all that time, when the one before it had its stay. A model that a
 * request needed the room for has its stay before items take that back.
 */
export class BulkWork {
  readonly #heldMax: number;
  readonly #lanes = new Map<string, LaneState>();
  /** Models that failed here are left alone until then. */
  readonly #asideUntilMs = new Map<string, number>();
  readonly #servedAtMs = new Map<string, number>();
  #turn: { readonly model: string; readonly sinceMs: number } | undefined;
  #waiting: readonly Waiting[] = [];
  /** When a model last was loaded for items; at first, when the worker began. */
  #loadedAtMs: number | undefined;
  /** When a request last needed the memory. */
  #crowdedAtMs = -Infinity;

  /** `heldMax`: items at one time, whatever they are at. */
  constructor({ heldMax }: { heldMax: number }) {
    invariant(heldMax >= 1, "a worker that pulls may hold an item");
    this.#heldMax = heldMax;
  }

  /** What to ask for now. Each ask counts as under way until `answered`. */
  asks(view: WorkerView, held: HeldItems, nowMs: number): readonly Ask[] {
    this.#loadedAtMs ??= nowMs;
    if (view.crowded) {
      this.#crowdedAtMs = nowMs;
      return [];
    }
    const models = view.models.filter(({ id }) => (this.#asideUntilMs.get(id) ?? -Infinity) <= nowMs);
    const turnTo = this.#turnTo(models, nowMs);
    if (turnTo !== undefined) return this.#askFor(turnTo, view, held, nowMs);

    const asks: Ask[] = [];
    for (const itemClass of ITEM_CLASSES) {
      for (const model of this.#inTurn(models, nowMs)) {
        const state = this.#lane({ itemClass, model: model.id });
        const wanted = this.#wanted(model, view, held);
        if (wanted <= 0 || state.asked > 0) continue;
        const listens = state.drySinceMs !== undefined;
        asks.push(this.#ask(state, listens ? { max: 1, waitMs: LISTEN_MS } : { max: wanted, waitMs: 0 }));
        if (!listens) return asks;
      }
    }
    return asks;
  }

  /** An ask came back with so many items, or failed and had none. */
  answered(ask: Ask, items: number, nowMs: number): void {
    const state = this.#lane(ask);
    invariant(state.asked === ask.max, "only what was asked for is answered");
    state.asked = 0;
    if (items > 0) {
      this.#servedAtMs.set(ask.model, nowMs);
      if (this.#turn?.model !== ask.model) this.#turn = { model: ask.model, sinceMs: nowMs };
    }
    // One that waited brings what came first; more may have come with it.
    if (items === ask.max) state.drySinceMs = undefined;
    else state.drySinceMs ??= nowMs;
  }

  /** What waits in the queue: asked for now and then where there are models on disk. */
  heard(waiting: readonly Waiting[]): void {
    this.#waiting = waiting;
  }

  /** The worker cannot make pictures of this model for now. */
  setAside(model: string, untilMs: number): void {
    this.#asideUntilMs.set(model, untilMs);
  }

  /** Items under way from the queue; those that may or may not come, from lanes that are listened at, left out. */
  get #coming(): number {
    let coming = 0;
    for (const { asked, drySinceMs } of this.#lanes.values()) if (drySinceMs === undefined) coming += asked;
    return coming;
  }

  #wanted({ sideBySide }: ModelView, { requestsDenoising }: WorkerView, held: HeldItems): number {
    if (requestsDenoising >= sideBySide) return 0;
    const denoising = requestsDenoising + held.denoising + this.#coming;
    return Math.min(2 * sideBySide - denoising, this.#heldMax - held.all - this.#coming);
  }

  /** Models in memory: the one whose turn it is, and then those that waited longest for theirs. */
  #inTurn(models: readonly ModelView[], nowMs: number): readonly ModelView[] {
    const resident = models.filter(({ resident }) => resident);
    const inTurn = this.#turn !== undefined && nowMs - this.#turn.sinceMs < TURN_MS ? this.#turn.model : undefined;
    const rank = ({ id }: ModelView) => (id === inTurn ? -Infinity : (this.#servedAtMs.get(id) ?? 0));
    return resident.toSorted((a, b) => rank(a) - rank(b));
  }

  /** The model on disk that items are to be pulled for, if there is one whose load is worth while. */
  #turnTo(models: readonly ModelView[], nowMs: number): ModelView | undefined {
    const resident = new Set(models.filter(({ resident }) => resident).map(({ id }) => id));
    const waited = (model: string) =>
      Math.max(...this.#waiting.filter((line) => line.model === model).map(({ oldestMs }) => oldestMs), -Infinity);
    const waiting = models
      .filter(({ id, resident }) => !resident && waited(id) > -Infinity)
      .toSorted((a, b) => waited(b.id) - waited(a.id));
    return waiting.find(({ fits, loadMs }) => {
      if (!fits && nowMs - this.#crowdedAtMs < STAY_MS_MIN) return false;
      if (this.#dryForMs(resident, nowMs) >= loadMs / 2) return true;
      return fits || nowMs - this.#loadedAtMs! >= Math.max(STAY_MS_MIN, STAY_LOADS * loadMs);
    });
  }

  /** How long no item has waited for any of these models. */
  #dryForMs(models: ReadonlySet<string>, nowMs: number): number {
    let forMs = Infinity;
    for (const { lane, drySinceMs = nowMs } of this.#lanes.values())
      if (models.has(lane.model)) forMs = Math.min(forMs, nowMs - drySinceMs);
    return models.size > 0 && this.#lanes.size === 0 ? 0 : forMs;
  }

  /** Items in flight keep their models in memory: where there is no room beside them, they are finished first. */
  #askFor(model: ModelView, view: WorkerView, held: HeldItems, nowMs: number): readonly Ask[] {
    if (!model.fits && held.all + this.#coming > 0) return [];
    const line = this.#waiting.find((each) => each.model === model.id)!;
    const state = this.#lane({ itemClass: line.itemClass, model: model.id });
    const wanted = this.#wanted(model, view, held);
    if (wanted <= 0 || state.asked > 0) return [];
    this.#waiting = this.#waiting.filter((each) => each !== line);
    this.#loadedAtMs = nowMs;
    state.drySinceMs = undefined;
    return [this.#ask(state, { max: wanted, waitMs: 0 })];
  }

  #ask(state: LaneState, { max, waitMs }: Pick<Ask, "max" | "waitMs">): Ask {
    state.asked = max;
    return { ...state.lane, max, waitMs };
  }

  #lane({ itemClass, model }: Lane): LaneState {
    const key = `${itemClass} ${model}`;
    let state = this.#lanes.get(key);
    if (state === undefined) {
      state = { lane: { itemClass, model }, asked: 0, drySinceMs: undefined };
      this.#lanes.set(key, state);
    }
    return state;
  }
}

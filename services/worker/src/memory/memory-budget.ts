import { invariant, ServingError } from "@atelier/core";
import { type LatentShape, latentShape } from "@atelier/diffusion";
import { type ActivationCurve, activationPrior, type Curve, curveBytes, type NetworkBytes } from "./activations.ts";
import { bytesText } from "./bytes.ts";
import { rowsMax, type StepRoom } from "./step-room.ts";

/** What the budget has to know of a model. */
export interface ModelMemory {
  readonly id: string;
  readonly family: string;
  readonly files: NetworkBytes;
  readonly latentChannels: number;
  readonly nativeSize: Size;
  readonly sizeMultiple: number;
  readonly sizeMin: number;
  readonly sizeMax: number;
}

interface Size {
  readonly width: number;
  readonly height: number;
}

/** The least that a request needs at one time: a step of one image at its largest shape, and that image's decode. */
export interface MemoryDemand {
  readonly shape: LatentShape;
  /** Of one image: two with guidance, one without. */
  readonly rows: number;
  /** Images that exist at once, each with its latent and its pixels. */
  readonly images: number;
}

export interface MemoryBudgetOptions {
  /** Infinity where it is not known, until the device refuses something. */
  readonly budgetBytes: number;
  readonly models: readonly ModelMemory[];
  /** Further U-Net sessions that a busy CPU opens; each reads the weights again. */
  readonly narrowLanesMax: number;
  readonly decoderSessions: number;
}

interface Known {
  readonly memory: ModelMemory;
  readonly prior: ActivationCurve;
  /** Of the prior; 1 before anything was measured. */
  scale: number;
  /** What the process really grew by when the networks opened, where that was more than their files. */
  openedBytes: number;
}

interface Held {
  readonly weightsBytes: number;
  readonly narrowLanes: boolean;
  /** The largest that was asked of it: arenas keep what they once had until the sessions are released. */
  most: MemoryDemand;
}

/** What an image on its way keeps for each latent pixel: five latents of four channels, and its pixels twice. */
const IMAGE_BYTES_PER_LATENT_PIXEL = 5 * 4 * 4 + 64 * 3 * 5;

/** A measurement is never believed to be below this share of the guess: memory that was freed before is used again unseen. */
const SCALE_MIN = 0.1;

/**
 * What is in memory and what else would fit: weights + adapters + activations, model by model. Counts and does no I/O;
 * whoever loads, unloads and runs tells it.
 *
 * The figures are predictions. Weights are the files' bytes, once for each session. Activations follow a curve over the
 * latent's area, guessed from the model's family and the size of its files, and scaled by one factor for each model,
 * which is learned: from what the process grew by at warm-up, and from every refusal of the device.
 */
export class MemoryBudget {
  readonly #known: ReadonlyMap<string, Known>;
  readonly #narrowLanesMax: number;
  readonly #decoderSessions: number;
  readonly #held = new Map<string, Held>();
  #budgetBytes: number;

  constructor({ budgetBytes, models, narrowLanesMax, decoderSessions }: MemoryBudgetOptions) {
    this.#budgetBytes = budgetBytes;
    this.#narrowLanesMax = narrowLanesMax;
    this.#decoderSessions = decoderSessions;
    this.#known = new Map(
      models.map((memory) => {
        const prior = activationPrior(memory.family, memory.files);
        return [memory.id, { memory, prior, scale: 1, openedBytes: 0 }];
      }),
    );
  }

  /** Infinity where it is not known. */
  get budgetBytes(): number {
    return this.#budgetBytes;
  }

  /** Of the models that are held. */
  get usedBytes(): number {
    let used = 0;
    for (const model of this.#held.keys()) used += this.#heldBytes(model);
    return used;
  }

  /** What is counted for a model: as it is held, or as it would be without narrow lanes. */
  weightsBytes(model: string): number {
    return this.#held.get(model)?.weightsBytes ?? this.#weightsBytes(model, { narrowLanes: false });
  }

  /** Whether the device may open the narrow lanes of a held model. */
  narrowLanes(model: string): boolean {
    return this.#held.get(model)?.narrowLanes ?? false;
  }

  /** What a model is warmed up with, and a load makes room for. */
  warmUpDemand(model: string): MemoryDemand {
    const { memory } = this.#of(model);
    return { shape: latentShape({ ...memory.nativeSize, channels: memory.latentChannels }), rows: 2, images: 1 };
  }

  /**
   * Whether the model alone, with this request, is within the budget.
   *
   * @throws ServingError INVALID_REQUEST naming the largest size of the same aspect that would fit; OUT_OF_MEMORY where
   *   the model itself does not.
   */
  check(model: string, demand: MemoryDemand): void {
    if (this.#aloneBytes(model, demand) <= this.#budgetBytes) return;
    const budget = `models and their step batches may take ${bytesText(this.#budgetBytes)} here`;
    const alone = this.#aloneBytes(model, this.warmUpDemand(model));
    if (alone > this.#budgetBytes) {
      throw new ServingError("OUT_OF_MEMORY", `model "${model}" takes about ${bytesText(alone)}, and ${budget}`);
    }
    const size = { width: demand.shape.width * 8, height: demand.shape.height * 8 };
    const images = demand.images === 1 ? "" : ` for ${demand.images} images`;
    const needed = `${size.width}x${size.height}${images} takes about ${bytesText(this.#aloneBytes(model, demand))}`;
    const largest = this.#largestSize(model, size, demand);
    const advice =
      largest === undefined
        ? "no size of this aspect fits"
        : `the largest size of this aspect that fits is ${largest.width}x${largest.height}`;
    const field = size.width >= size.height ? "width" : "height";
    throw new ServingError("INVALID_REQUEST", `width, height: ${needed}, and ${budget}; ${advice}`, { field });
  }

  /** Whether the model with this request fits beside everything that is held. */
  fits(model: string, demand: MemoryDemand): boolean {
    return this.#bytesWith(model, demand) <= this.#budgetBytes;
  }

  /**
   * Which of `idle` have to go so that it fits, in their order; empty where it fits already, undefined where it would
   * not fit without all of them either.
   */
  victims(model: string, demand: MemoryDemand, idle: readonly string[]): readonly string[] | undefined {
    let over = this.#bytesWith(model, demand) - this.#budgetBytes;
    const victims: string[] = [];
    for (const candidate of idle) {
      if (over <= 0) break;
      invariant(candidate !== model, "a model does not make room for itself");
      invariant(this.#held.has(candidate), `${candidate} is held`);
      over -= this.#heldBytes(candidate);
      victims.push(candidate);
    }
    return over <= 0 ? victims : undefined;
  }

  /**
   * Counts the model and this request from now on. A model that is new gets narrow lanes where they leave room for its
   * largest image: they make it faster, and a request that they made impossible would be a bad bargain.
   */
  hold(model: string, demand: MemoryDemand): void {
    const held = this.#held.get(model);
    if (held !== undefined) {
      if (this.#activationBytes(model, demand) > this.#activationBytes(model, held.most)) held.most = demand;
      return;
    }
    const narrowLanes = this.#narrowLanesMax > 0 && this.#hasRoomForNarrowLanes(model);
    this.#held.set(model, { weightsBytes: this.#weightsBytes(model, { narrowLanes }), narrowLanes, most: demand });
  }

  /** The model is no longer in memory. */
  letGo(model: string): void {
    this.#held.delete(model);
  }

  /** A U-Net run of a held model went well: its arena has grown to that. */
  ran(model: string, shape: LatentShape, rows: number): void {
    if (this.#held.has(model)) this.hold(model, { shape, rows, images: 1 });
  }

  /** What the model's step batches may take beside everything else that is held: all that is free, and what it has. */
  stepRoom(model: string): StepRoom {
    const others = this.usedBytes - this.#heldBytes(model);
    const { prior, scale } = this.#of(model);
    const scaled = ({ linear, square }: Curve) => ({ linear: scale * linear, square: scale * square });
    const decode = scaled(prior.decode);
    return {
      bytes: this.#budgetBytes - others - this.weightsBytes(model),
      curve: { unet: scaled(prior.unet), decode: { ...decode, linear: decode.linear + IMAGE_BYTES_PER_LATENT_PIXEL } },
    };
  }

  /** Rows of the largest step batch of this shape that fits beside what is held. */
  rowsMax(model: string, shape: LatentShape): number {
    return rowsMax(this.stepRoom(model), shape);
  }

  /** What the process grew by when the model's networks opened, with nothing else running. Counts from the next load on. */
  opened(model: string, bytes: number): void {
    const known = this.#of(model);
    known.openedBytes = Math.max(known.openedBytes, bytes);
  }

  /** What the process grew by in this model's first runs, with nothing else running. */
  measured(model: string, demand: MemoryDemand, bytes: number): void {
    const known = this.#of(model);
    const guessed = this.#priorBytes(model, demand);
    known.scale = Math.max(SCALE_MIN, bytes / guessed);
  }

  /**
   * The device had no memory for a run of so many rows: they take more than was thought, or, where the budget is not
   * known, there is less than they take.
   */
  ranOutOfMemory(model: string, shape: LatentShape, rows: number): void {
    const demand = { shape, rows, images: 1 };
    const neededBytes = this.#activationBytes(model, demand);
    if (this.#budgetBytes === Infinity) {
      const others = this.usedBytes - this.#heldBytes(model);
      this.#budgetBytes = others + this.weightsBytes(model) + neededBytes - 1;
      return;
    }
    const { bytes: roomBytes } = this.stepRoom(model);
    if (neededBytes > roomBytes) return;
    this.#of(model).scale = (roomBytes - imageBytes(shape, 1) + 1) / this.#priorBytes(model, demand);
  }

  #of(model: string): Known {
    const known = this.#known.get(model);
    invariant(known !== undefined, `${model} is a model of this worker`);
    return known;
  }

  #hasRoomForNarrowLanes(model: string): boolean {
    const { sizeMax, latentChannels: channels } = this.#of(model).memory;
    const shape = latentShape({ width: sizeMax, height: sizeMax, channels });
    const bytes =
      this.#weightsBytes(model, { narrowLanes: true }) + this.#activationBytes(model, { shape, rows: 2, images: 1 });
    return this.usedBytes + bytes <= this.#budgetBytes;
  }

  #weightsBytes(model: string, { narrowLanes }: { narrowLanes: boolean }): number {
    const { memory, openedBytes } = this.#of(model);
    const { textEncoder, unet, vaeDecoder, vaeEncoder } = memory.files;
    const fromStart = textEncoder + unet + vaeDecoder + vaeEncoder;
    const later = (this.#decoderSessions - 1) * vaeDecoder + (narrowLanes ? this.#narrowLanesMax * unet : 0);
    // Weights that grow when they are opened, float16 ones on a CPU say, grow so in every session.
    return Math.max(1, openedBytes / fromStart) * (fromStart + later);
  }

  #priorBytes(model: string, { shape, rows }: MemoryDemand): number {
    const { unet, decode } = this.#of(model).prior;
    return rows * curveBytes(unet, shape) + curveBytes(decode, shape);
  }

  #activationBytes(model: string, demand: MemoryDemand): number {
    return this.#of(model).scale * this.#priorBytes(model, demand) + imageBytes(demand.shape, demand.images);
  }

  #aloneBytes(model: string, demand: MemoryDemand): number {
    return this.weightsBytes(model) + this.#activationBytes(model, demand);
  }

  /** All that is held, with this request of this model. */
  #bytesWith(model: string, demand: MemoryDemand): number {
    const heldBytes = this.#heldBytes(model);
    return this.usedBytes - heldBytes + Math.max(heldBytes, this.#aloneBytes(model, demand));
  }

  /** Weights, adapters and activations; 0 where it is not held. Adapters are no part of it yet. */
  #heldBytes(model: string): number {
    const held = this.#held.get(model);
    const adapterBytes = 0;
    return held === undefined ? 0 : held.weightsBytes + adapterBytes + this.#activationBytes(model, held.most);
  }

  #largestSize(model: string, size: Size, { rows, images }: MemoryDemand): Size | undefined {
    const { sizeMultiple, sizeMin, latentChannels: channels } = this.#of(model).memory;
    for (let width = size.width - sizeMultiple; width >= sizeMin; width -= sizeMultiple) {
      const height = Math.round((size.height * width) / size.width / sizeMultiple) * sizeMultiple;
      if (height < sizeMin) break;
      const shape = latentShape({ width, height, channels });
      if (this.#aloneBytes(model, { shape, rows, images }) <= this.#budgetBytes) return { width, height };
    }
    return undefined;
  }
}

function imageBytes({ height, width }: LatentShape, images: number): number {
  return images * height * width * IMAGE_BYTES_PER_LATENT_PIXEL;
}

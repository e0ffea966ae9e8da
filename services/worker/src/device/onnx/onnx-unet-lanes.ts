import type { UnetBatch, UnetRow } from "../../stages/denoise.ts";
import type { Releasable, UnetLane, UnetLanes } from "../device.ts";
import type { OnnxUnet } from "./onnx-unet.ts";

export interface OnnxUnetLanesOptions {
  /** How many lanes of one thread there may be, and how to open one. */
  readonly narrowMax: number;
  readonly openNarrow: () => Promise<OnnxUnet>;
  readonly note?: string | undefined;
  /** Rows of the runs in which a row is compared with itself among two. */
  readonly comparedRows: readonly number[];
}

/** One U-Net, open once with all threads, and on a CPU with several threads once for each, when there is need. */
export class OnnxUnetLanes implements UnetLanes, Releasable {
  readonly wide: UnetLane;
  readonly narrow: OnnxUnet[] = [];
  readonly narrowMax: number;
  readonly note: string | undefined;
  readonly #session: OnnxUnet;
  readonly #options: OnnxUnetLanesOptions;
  #opening: Promise<void> | undefined;
  #compared: Compared | undefined;

  constructor(session: OnnxUnet, options: OnnxUnetLanesOptions) {
    this.wide = { threads: session.threads, predictNoise: (batch) => this.#predictWide(batch) };
    this.narrowMax = options.narrowMax;
    this.note = options.note;
    this.#session = session;
    this.#options = options;
  }

  openNarrow(): Promise<void> {
    this.#opening ??= this.#openAll();
    return this.#opening;
  }

  get batchDifference(): number | undefined {
    return this.#compared?.difference;
  }

  get weightsBytes(): number {
    return this.#session.weightsBytes * (1 + this.narrowMax);
  }

  async release(): Promise<void> {
    // A lane that could not be opened has nothing to release, and whoever asked for it has heard.
    await this.#opening?.catch(() => {});
    await Promise.all([this.#session, ...this.narrow].map((lane) => lane.release()));
  }

  async #openAll(): Promise<void> {
    const opened = await Promise.allSettled(
      Array.from({ length: this.narrowMax }, async (_, i) => {
        const lane = await this.#options.openNarrow();
        if (i === 0) await this.#compare(lane, 1); // the others are the same
        this.narrow.push(lane);
      }),
    );
    for (const outcome of opened) if (outcome.status === "rejected") throw outcome.reason;
  }

  /** The first run of two rows, which is the warm-up's, is followed by others of one of its rows. */
  async #predictWide(batch: UnetBatch): Promise<readonly Float32Array[]> {
    const predictions = await this.#session.predictNoise(batch);
    if (this.#compared !== undefined || batch.rows.length !== 2) return predictions;
    const kept = predictions.map((prediction) => prediction.slice());
    const rows = batch.rows.map((row) => ({ ...row, sample: row.sample.slice() }));
    this.#compared = { batch: { ...batch, rows }, prediction: kept[0]!, difference: 0 };
    for (const count of this.#options.comparedRows) await this.#compare(this.#session, count);
    return kept;
  }

  /** Runs the compared row among as many, on this lane. */
  async #compare(lane: OnnxUnet, rowCount: number): Promise<void> {
    const compared = this.#compared;
    if (compared === undefined) return;
    const { batch, prediction } = compared;
    const rows = Array.from({ length: rowCount }, (_, i): UnetRow => batch.rows[i % 2]!);
    const [again] = await lane.predictNoise({ ...batch, rows });
    compared.difference = Math.max(compared.difference, largestDifference(prediction, again!));
  }
}

/** What one run of two rows gave for the first of them, and how far other runs were from that. */
interface Compared {
  readonly batch: UnetBatch;
  readonly prediction: Float32Array;
  difference: number;
}

function largestDifference(a: Float32Array, b: Float32Array): number {
  return a.reduce((largest, x, i) => Math.max(largest, Math.abs(x - b[i]!)), 0);
}

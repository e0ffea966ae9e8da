import type { Releasable, UnetLanes } from "../device.ts";
import type { OnnxUnet } from "./onnx-unet.ts";

/** One U-Net, open once with all threads, and on a CPU with several threads once for each, when there is need. */
export class OnnxUnetLanes implements UnetLanes, Releasable {
  readonly wide: OnnxUnet;
  readonly narrow: OnnxUnet[] = [];
  readonly narrowMax: number;
  readonly #open: () => Promise<OnnxUnet>;
  #opening: Promise<void> | undefined;

  constructor(wide: OnnxUnet, narrow: { readonly max: number; readonly open: () => Promise<OnnxUnet> }) {
    this.wide = wide;
    this.narrowMax = narrow.max;
    this.#open = narrow.open;
  }

  openNarrow(): Promise<void> {
    this.#opening ??= this.#openAll();
    return this.#opening;
  }

  get weightsBytes(): number {
    return [this.wide, ...this.narrow].reduce((sum, lane) => sum + lane.weightsBytes, 0);
  }

  async release(): Promise<void> {
    // A lane that could not be opened has nothing to release, and whoever asked for it has heard.
    await this.#opening?.catch(() => {});
    await Promise.all([this.wide, ...this.narrow].map((lane) => lane.release()));
  }

  async #openAll(): Promise<void> {
    const opened = await Promise.allSettled(
      Array.from({ length: this.narrowMax }, async () => {
        this.narrow.push(await this.#open());
      }),
    );
    for (const outcome of opened) if (outcome.status === "rejected") throw outcome.reason;
  }
}

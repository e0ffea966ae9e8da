import { GPU_FIGURES, NATIVE_AREA, ROWS_SHARE, type SimulatedGpu, type SimulatedModel } from "./gpu-figures.ts";

/** A bundle's family as the tables know it: SD 2's U-Net differs from SD 1.5's by half a percent of its parameters. */
export function simulatedModel(family: string): SimulatedModel {
  return family === "sdxl" ? "sdxl" : "sd15";
}

/** How long a GPU takes for one model's networks, in milliseconds. Pure arithmetic on the published figures. */
export class GpuTimes {
  readonly #gpu: SimulatedGpu;
  readonly #model: SimulatedModel;

  constructor(gpu: SimulatedGpu, model: SimulatedModel) {
    this.#gpu = gpu;
    this.#model = model;
  }

  /**
   * One U-Net run of `rows` rows of `area` latent places (height x width).
   *
   * From the native size up a picture takes time in proportion to its area; that attention grows faster is left out.
   * Below it, a part stays that no smaller picture saves: what rows do not share there.
   */
  stepMs({ area, rows }: { readonly area: number; readonly rows: number }): number {
    const native = NATIVE_AREA[this.#model];
    const size = area >= native ? area / native : grown(rowsShare(native), area / native);
    return this.#figures.step.ms * size * grown(rowsShare(area), rows / 2);
  }

  /** One run of the text encoders on so many chunks; two, a prompt and a negative one, take as long as one. */
  textEncodeMs(chunks: number): number {
    return this.#figures.textEncode.ms * Math.max(1, chunks / 2);
  }

  /** Pictures of `area` latent places each, one after another. Nothing is published of encoding: as long. */
  decodeMs({ area, pictures }: { readonly area: number; readonly pictures: number }): number {
    return (this.#figures.decode.ms * pictures * area) / NATIVE_AREA[this.#model];
  }

  get #figures() {
    return GPU_FIGURES[this.#gpu][this.#model];
  }
}

/** Time of `factor` times the work where `share` of the time grows with it. */
function grown(share: number, factor: number): number {
  return 1 - share + share * factor;
}

function rowsShare(area: number): number {
  const [small, large] = ROWS_SHARE as readonly [(typeof ROWS_SHARE)[0], (typeof ROWS_SHARE)[0]];
  const position = Math.log(area / small.area) / Math.log(large.area / small.area);
  return small.share + Math.min(1, Math.max(0, position)) * (large.share - small.share);
}

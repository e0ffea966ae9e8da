import type { NetworkBytes } from "./memory/activations.ts";
import type { MemoryBudget } from "./memory/memory-budget.ts";
import type { ShelfIo } from "./model-shelf.ts";
import { allOf, type Model } from "./models.ts";
import type { StageName, StageThreads } from "./threads/stage-threads.ts";

export interface ModelLoaderOptions {
  readonly models: ReadonlyMap<string, Model>;
  readonly threads: Pick<StageThreads, "openModel" | "closeModel">;
  readonly budget: MemoryBudget;
  /** Makes the model's first picture. */
  readonly warmUp: (model: Model) => Promise<void>;
  /** For the log: what somebody should know of how a model that was opened runs. */
  readonly onNote: (note: string) => void;
  /** Grows with every request but the warm-ups; undefined while one is in flight. */
  readonly activity: () => number | undefined;
  /** Bytes of the device's memory that the process has now; undefined where that cannot be seen. */
  readonly residentBytes: () => number | undefined;
}

const BYTES_OF: Readonly<Record<StageName, keyof NetworkBytes>> = {
  textEncode: "textEncoder",
  imageEncode: "vaeEncoder",
  denoise: "unet",
  imageDecode: "vaeDecoder",
};

/**
 * Opens a model in the stages and makes its first picture, so that a resident model is a warm one. Measures what the
 * process grows by, and tells the budget where it was this model's doing alone.
 *
 * What it can see is the process's resident memory. Pages that something else had freed are used again without a
 * trace, so a figure may be too low, never too high by more than the process's own noise of some tens of MB.
 */
export class ModelLoader implements ShelfIo {
  readonly #options: ModelLoaderOptions;
  #loads = 0;
  #loading = 0;

  constructor(options: ModelLoaderOptions) {
    this.#options = options;
  }

  async open(id: string, onOpened: (fileBytes: number) => void): Promise<void> {
    const { threads, budget, warmUp, residentBytes, onNote } = this.#options;
    const model = this.#options.models.get(id)!;
    this.#loads += 1;
    this.#loading += 1;
    const alone = this.#watch();
    try {
      const before = residentBytes();
      try {
        const onNetwork = (stage: StageName) => onOpened(model.fileBytes[BYTES_OF[stage]]);
        const { notes } = await threads.openModel(model, { narrowLanes: budget.narrowLanes(id), onNetwork });
        for (const note of notes) onNote(note);
      } catch (error) {
        throw error instanceof AggregateError ? allOf(error.errors) : error;
      }
      const opened = residentBytes();
      try {
        await warmUp(model);
      } catch (error) {
        await threads.closeModel(id);
        throw error;
      }
      const warm = residentBytes();
      if (before === undefined || opened === undefined || warm === undefined || !alone()) return;
      budget.opened(id, opened - before);
      budget.measured(id, budget.warmUpDemand(id), warm - opened);
    } finally {
      this.#loading -= 1;
    }
  }

  close(id: string): Promise<void> {
    return this.#options.threads.closeModel(id);
  }

  /** The result says whether nothing else has run and nothing else was loaded since. */
  #watch(): () => boolean {
    const { activity } = this.#options;
    const quiet = activity();
    const loads = this.#loads;
    const only = this.#loading === 1;
    return () => only && this.#loads === loads && quiet !== undefined && activity() === quiet;
  }
}

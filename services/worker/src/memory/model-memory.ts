import { totalmem } from "node:os";
import type { Model } from "../models.ts";
import type { ModelMemory } from "./memory-budget.ts";

/** A share is left to the process itself, to the pictures that pass through, and to the rest of the machine. */
const SHARE = 0.8;

/**
 * Bytes that models may take on a CPU where nothing else was said: a share of the machine's memory, or of what the
 * control group allows where that is less.
 */
export function cpuBudgetBytes(): number {
  const limit = process.constrainedMemory(); // 0, or larger than any machine, where there is no limit
  return Math.floor(SHARE * (limit > 0 ? Math.min(limit, totalmem()) : totalmem()));
}

/** What the budget has to know of a model. */
export function memoryOf({ bundle, fileBytes }: Model): ModelMemory {
  const { family, nativeSize, sizeMultiple, sizeMin, sizeMax } = bundle.manifest;
  return {
    id: bundle.id,
    family,
    files: fileBytes,
    latentChannels: bundle.latentChannels,
    nativeSize,
    sizeMultiple,
    sizeMin,
    sizeMax,
  };
}

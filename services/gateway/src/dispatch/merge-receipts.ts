import type { Receipt } from "@atelier/proto";
import type { GenerationReceipt, ImageRequest, StageTimesMs } from "../image-request.ts";
import { receiptFromWire } from "../wire.ts";

/**
 * One receipt of all calls that ended well, as of one undisturbed call: the pictures' parameters are the request's, stages
 * took as long as the longest, since they ran side by side, and device time is the sum. Calls that were lost have none.
 *
 * @throws ServingError INTERNAL when one is incomplete: it would not be enough to make the picture again.
 */
export function mergeReceipts(
  { seed, numImages }: Pick<ImageRequest, "seed" | "numImages">,
  wire: readonly (Receipt | undefined)[],
  workerIds: readonly string[],
): GenerationReceipt {
  const receipts = wire.map(receiptFromWire);
  const last = receipts.at(-1) ?? receiptFromWire(undefined);
  return {
    ...last,
    seed,
    numImages,
    simulated: receipts.some(({ simulated }) => simulated),
    tiledDecode: receipts.some(({ tiledDecode }) => tiledDecode),
    embeddingsCached: receipts.every(({ embeddingsCached }) => embeddingsCached),
    preemptions: receipts.reduce((sum, { preemptions }) => sum + preemptions, 0),
    reusedSteps: Math.max(...receipts.map(({ reusedSteps }) => reusedSteps)),
    batchDifference: Math.max(...receipts.map(({ batchDifference }) => batchDifference)),
    deviceMs: sumOfKnown(receipts.map(({ deviceMs }) => deviceMs)),
    times: longest(receipts.map(({ times }) => times)),
    attempts: workerIds.length,
    workerIds,
    resumedAtSteps: receipts.flatMap(({ resumedAtSteps }) => resumedAtSteps),
  };
}

function longest(all: readonly StageTimesMs[]): StageTimesMs {
  const most = (stage: keyof StageTimesMs) => Math.max(...all.map((times) => times[stage]));
  return {
    queueMs: most("queueMs"),
    textEncodeMs: most("textEncodeMs"),
    denoiseMs: most("denoiseMs"),
    imageDecodeMs: most("imageDecodeMs"),
  };
}

/** Undefined where a worker does not tell. */
function sumOfKnown(all: readonly (number | undefined)[]): number | undefined {
  return all.reduce((sum, each) => (sum === undefined || each === undefined ? undefined : sum + each), 0);
}

import { GenerationParametersSchema, ReceiptSchema } from "@atelier/proto";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { describe, expect, it } from "vitest";
import { mergeReceipts } from "./merge-receipts.ts";

describe("the receipt of several calls", () => {
  it("is that of the request: its seed and number of pictures, stages side by side, device time summed", () => {
    const first = receipt({
      deviceMs: 100,
      preemptions: 1,
      embeddingsCached: true,
      resumedAtSteps: [7],
      times: { queueMs: 5, textEncodeMs: 1, denoiseMs: 90, imageDecodeMs: 10 },
    });
    const second = receipt({
      workerId: "c",
      deviceMs: 50,
      preemptions: 2,
      tiledDecode: true,
      batchDifference: 0.5,
      resumedAtSteps: [3, 4],
      times: { queueMs: 9, textEncodeMs: 2, denoiseMs: 40, imageDecodeMs: 20 },
    });
    expect(mergeReceipts({ seed: 11, numImages: 4 }, [first, second], ["a", "b", "c"])).toMatchObject({
      seed: 11,
      numImages: 4,
      workerId: "c",
      attempts: 3,
      workerIds: ["a", "b", "c"],
      resumedAtSteps: [7, 3, 4],
      preemptions: 3,
      embeddingsCached: false,
      tiledDecode: true,
      batchDifference: 0.5,
      deviceMs: 150,
      times: { queueMs: 9, textEncodeMs: 2, denoiseMs: 90, imageDecodeMs: 20 },
    });
  });

  it("says that a picture is simulated where any of them is", () => {
    const merged = mergeReceipts({ seed: 1, numImages: 2 }, [receipt({ simulated: true }), receipt({})], ["a"]);
    expect(merged.simulated).toBe(true);
  });

  it("claims no device time where one worker does not tell it", () => {
    const merged = mergeReceipts({ seed: 1, numImages: 2 }, [receipt({ deviceMs: 5 }), receipt({})], ["a"]);
    expect(merged.deviceMs).toBeUndefined();
  });

  it("is refused where one is not enough to make its picture again", () => {
    const merge = () => mergeReceipts({ seed: 1, numImages: 2 }, [receipt({}), undefined], ["a"]);
    expect(merge).toThrow(/INTERNAL.*without a complete receipt/);
  });
});

function receipt(changes: MessageInitShape<typeof ReceiptSchema>) {
  const parameters = create(GenerationParametersSchema, { model: "m", sampler: 1, seed: 3n, numImages: 1 });
  return create(ReceiptSchema, { parameters, workerId: "a", modelDigest: "sha256:00", ...changes });
}

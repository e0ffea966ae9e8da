import { latentShape } from "@atelier/diffusion";
import { describe, expect, it } from "vitest";
import { MemoryBudget, type MemoryDemand, type ModelMemory } from "./memory-budget.ts";

const MIB = 2 ** 20;
const GIB = 2 ** 30;

describe("MemoryBudget", () => {
  it("guesses what Stable Diffusion 1.5 needs at 512x512 to within a factor of two of the sums by hand", () => {
    const budget = budgetOf({ budgetBytes: 64 * GIB, models: [SD15] });
    budget.hold("sd15", demand(512, 512));
    const activations = budget.usedBytes - filesOf(SD15);
    // Scores and softmax of 8 heads over 4096^2 pairs, twice 1 GiB; by hand some 0.6 GiB of maps and the decode's 0.5.
    expect(activations).toBeGreaterThan(2.2 * GIB);
    expect(activations).toBeLessThan(6.2 * GIB);
  });

  it("counts a model's files once for each session, and its largest run until it is let go", () => {
    const budget = budgetOf({ budgetBytes: 100 * GIB, models: [model("a")], narrowLanesMax: 0 });
    budget.hold("a", demand(512, 512));
    const one = budget.usedBytes;
    budget.ran("a", latentShape({ width: 512, height: 512 }), 8);
    const eight = budget.usedBytes;
    expect(eight).toBeGreaterThan(one);
    budget.ran("a", latentShape({ width: 256, height: 256 }), 2); // the arena does not shrink
    expect(budget.usedBytes).toBe(eight);
    budget.letGo("a");
    expect(budget.usedBytes).toBe(0);
  });

  it("grants narrow lanes where they fit beside the largest image, and counts the U-Net once for each", () => {
    const rich = budgetOf({ budgetBytes: 100 * GIB, models: [model("a")], narrowLanesMax: 4 });
    rich.hold("a", demand(512, 512));
    expect(rich.narrowLanes("a")).toBe(true);
    const files = model("a").files;
    expect(rich.weightsBytes("a")).toBe(files.textEncoder + 5 * files.unet + 2 * files.vaeDecoder + files.vaeEncoder);

    const largest = budgetOf({ budgetBytes: Infinity, models: [model("a")], narrowLanesMax: 0 });
    largest.hold("a", demand(1024, 1024));
    const budgetBytes = largest.usedBytes + files.vaeDecoder + 3 * files.unet; // one lane short of four
    const poor = budgetOf({ budgetBytes, models: [model("a")], narrowLanesMax: 4 });
    poor.hold("a", demand(512, 512));
    expect(poor.narrowLanes("a")).toBe(false);
    poor.check("a", demand(1024, 1024)); // and so the largest image is possible
  });

  it("names the idle models that have to go, the first in order first, and no more than it takes", () => {
    const models = ["a", "b", "c", "d"].map((id) => model(id));
    const each = sizeOf("a", models);
    const budget = budgetOf({ budgetBytes: 3 * each, models });
    for (const id of ["a", "b", "c"]) budget.hold(id, demand(512, 512));
    expect(budget.fits("d", demand(512, 512))).toBe(false);
    expect(budget.victims("d", demand(512, 512), ["b", "a", "c"])).toEqual(["b"]);
    expect(budget.victims("d", demand(512, 512), [])).toBeUndefined();
    expect(budget.victims("a", demand(512, 512), ["b"])).toEqual([]);
    budget.letGo("b");
    expect(budget.fits("d", demand(512, 512))).toBe(true);
  });

  describe("on a request that can never fit", () => {
    const budget = budgetOf({ budgetBytes: 3 * GIB, models: [model("a")] });

    it("names both sides, what it takes, what there is, and the largest size of the same aspect", () => {
      const error = refusal(() => budget.check("a", demand(1024, 768)));
      expect(error).toMatchObject({ code: "INVALID_REQUEST", field: "width" });
      expect(error.detail).toMatch(
        /^width, height: 1024x768 takes about \d+\.\d GiB, and models and their step batches may take 3\.0 GiB here; the largest size of this aspect that fits is \d+x\d+$/,
      );
      const [, width, height] = /fits is (\d+)x(\d+)/.exec(error.detail)!.map(Number);
      expect(width! / height!).toBeCloseTo(1024 / 768, 1);
      budget.check("a", demand(width!, height!)); // it does fit,
      expect(() => budget.check("a", demand(width! + 8, height! + 8))).toThrow(); // and the next does not
    });

    it("points at the height of a tall picture", () => {
      expect(refusal(() => budget.check("a", demand(768, 1024)))).toMatchObject({ field: "height" });
    });

    it("takes a step without guidance for half of one with it", () => {
      const one = refusal(() => budget.check("a", { ...demand(1024, 1024), rows: 1 }));
      const two = refusal(() => budget.check("a", demand(1024, 1024)));
      expect(sideIn(one)).toBeGreaterThan(sideIn(two));
    });

    it("counts the images of the request", () => {
      const edge = sideIn(refusal(() => budget.check("a", demand(1024, 1024))));
      budget.check("a", demand(edge, edge));
      const many = refusal(() => budget.check("a", { ...demand(edge, edge), images: 64 }));
      expect(many.detail).toContain(`${edge}x${edge} for 64 images`);
    });

    it("says where no size of the aspect fits", () => {
      const edge = sideIn(refusal(() => budget.check("a", demand(1024, 1024))));
      const large = budgetOf({ budgetBytes: 3 * GIB, models: [{ ...model("a"), sizeMin: edge + 8 }] });
      expect(refusal(() => large.check("a", demand(1024, 1024))).detail).toMatch(/; no size of this aspect fits$/);
    });

    it("refuses a model that does not fit by itself as out of memory, whatever is asked of it", () => {
      const small = budgetOf({ budgetBytes: 100 * MIB, models: [model("a")] });
      expect(refusal(() => small.check("a", demand(256, 256)))).toMatchObject({
        code: "OUT_OF_MEMORY",
        detail: expect.stringMatching(/^model "a" takes about .* may take 100\.0 MiB here$/),
      });
    });
  });

  describe("the largest step batch", () => {
    const shape = latentShape({ width: 512, height: 512 });

    it("is what fits beside the other models, and not a row more", () => {
      const models = [model("a"), model("b")];
      const budget = budgetOf({ budgetBytes: 6 * GIB, models });
      budget.hold("a", demand(512, 512));
      const alone = budget.rowsMax("a", shape);
      budget.hold("b", demand(512, 512));
      const beside = budget.rowsMax("a", shape);
      expect(beside).toBeLessThan(alone);
      expect(budget.fits("a", { shape, rows: beside, images: 1 })).toBe(true);
      expect(budget.fits("a", { shape, rows: beside + 1, images: 1 })).toBe(false);
    });

    it("is one row at least, and without end where the budget is not known", () => {
      const tight = budgetOf({ budgetBytes: 10 * MIB, models: [model("a")] });
      expect(tight.rowsMax("a", shape)).toBe(1);
      expect(budgetOf({ budgetBytes: Infinity, models: [model("a")] }).rowsMax("a", shape)).toBe(Infinity);
    });

    it("shrinks below what the device has refused, for larger shapes as well", () => {
      const budget = budgetOf({ budgetBytes: 6 * GIB, models: [model("a")] });
      budget.hold("a", demand(512, 512));
      const large = latentShape({ width: 768, height: 768 });
      const before = { here: budget.rowsMax("a", shape), larger: budget.rowsMax("a", large) };
      budget.ranOutOfMemory("a", shape, 4);
      expect(before.here).toBeGreaterThan(4);
      expect(budget.rowsMax("a", shape)).toBe(3);
      expect(budget.rowsMax("a", large)).toBeLessThan(before.larger);
    });

    it("learns from a refusal what there is, where the budget was not known", () => {
      const budget = budgetOf({ budgetBytes: Infinity, models: [model("a")] });
      budget.hold("a", demand(512, 512));
      budget.ranOutOfMemory("a", shape, 16);
      expect(budget.budgetBytes).toBeLessThan(Infinity);
      expect(budget.rowsMax("a", shape)).toBe(15);
    });

    it("grows when the warm-up has taken less than the guess, down to a tenth of it", () => {
      const models = [model("a")];
      const budget = budgetOf({ budgetBytes: 6 * GIB, models });
      const guessed = budget.rowsMax("a", shape);
      budget.measured("a", budget.warmUpDemand("a"), 200 * MIB);
      const measured = budget.rowsMax("a", shape);
      budget.measured("a", budget.warmUpDemand("a"), 0);
      expect(measured).toBeGreaterThan(guessed);
      expect(budget.rowsMax("a", shape)).toBeGreaterThan(measured);
      expect(budget.rowsMax("a", shape)).toBeLessThan(20 * guessed);
    });
  });

  it("counts weights that grew when they were opened as what they grew to, from the next load on", () => {
    const budget = budgetOf({ budgetBytes: 100 * GIB, models: [model("a")] });
    const files = budget.weightsBytes("a");
    budget.opened("a", 2 * files);
    expect(budget.weightsBytes("a")).toBe(2 * files);
    budget.opened("a", files / 2); // freed pages were used again: no proof that there is less
    expect(budget.weightsBytes("a")).toBe(2 * files);
  });
});

const SD15: ModelMemory = {
  id: "sd15",
  family: "sd1",
  files: { textEncoder: 246 * MIB, unet: 1720 * MIB, vaeDecoder: 99 * MIB, vaeEncoder: 68 * MIB },
  latentChannels: 4,
  nativeSize: { width: 512, height: 512 },
  sizeMultiple: 8,
  sizeMin: 256,
  sizeMax: 1024,
};

/** A model of a tenth of SD 1.5's weights. */
function model(id: string): ModelMemory {
  const files = { textEncoder: 25 * MIB, unet: 172 * MIB, vaeDecoder: 10 * MIB, vaeEncoder: 7 * MIB };
  return { ...SD15, id, family: "sdxl", files };
}

function budgetOf({
  narrowLanesMax = 0,
  ...options
}: {
  budgetBytes: number;
  models: ModelMemory[];
  narrowLanesMax?: number;
}) {
  return new MemoryBudget({ narrowLanesMax, decoderSessions: narrowLanesMax > 0 ? 2 : 1, ...options });
}

function filesOf({ files }: ModelMemory): number {
  return files.textEncoder + files.unet + files.vaeDecoder + files.vaeEncoder;
}

function sizeOf(id: string, models: ModelMemory[]): number {
  const budget = budgetOf({ budgetBytes: Infinity, models });
  budget.hold(id, demand(512, 512));
  return budget.usedBytes;
}

function demand(width: number, height: number): MemoryDemand {
  return { shape: latentShape({ width, height }), rows: 2, images: 1 };
}

function refusal(run: () => void): { code: string; field: string; detail: string } {
  try {
    run();
  } catch (error) {
    return error as { code: string; field: string; detail: string };
  }
  throw new Error("it was not refused");
}

function sideIn({ detail }: { detail: string }): number {
  return Number(/fits is (\d+)x/.exec(detail)?.[1]);
}

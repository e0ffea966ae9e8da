import { describe, expect, it } from "vitest";
import { PartialImages } from "./openai-events.ts";

describe("partial images", () => {
  it.each([
    // steps, of them refining on top, asked for -> at which steps
    [8, 0, 3, [2, 4, 6]],
    [25, 0, 3, [6, 12, 18]],
    [25, 0, 1, [12]],
    [25, 12, 3, [6, 18, 24]], // of 37: as near to 9, 18 and 28 as previews each 6 steps of each phase come
    [2, 0, 3, [1, 2]], // there are no more
    [4, 0, 0, []],
  ])("of %i steps and %i more, %i asked for, are spread over them: %j", (steps, more, count, chosen) => {
    const partials = new PartialImages(count);
    const every = partials.previewEvery(steps) ?? Number.POSITIVE_INFINITY;
    const stepsTotal = steps + more;
    const previewed = Array.from({ length: stepsTotal }, (_, i) => i + 1).filter((step) => step % every === 0);
    const taken = previewed.filter(
      (stepsDone) => partials.indexOf({ imageIndex: 0, stepsDone, stepsTotal }) !== undefined,
    );
    expect(taken).toEqual(chosen);
  });

  it("are counted for each picture by itself", () => {
    const partials = new PartialImages(1);
    const at = (imageIndex: number, stepsDone: number) => partials.indexOf({ imageIndex, stepsDone, stepsTotal: 20 });
    expect([at(0, 10), at(1, 11), at(0, 14), at(1, 15)]).toEqual([0, 0, undefined, undefined]);
  });
});

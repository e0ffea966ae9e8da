import { describe, expect, it } from "vitest";
import { applyWeights } from "./weights.ts";

describe("applyWeights", () => {
  it("gives back the very array when nothing is weighted, so a plain prompt stays as the encoder made it", () => {
    const embeddings = Float32Array.of(1, 2, 3, 4);
    expect(applyWeights(embeddings, Float32Array.of(1, 1))).toBe(embeddings);
  });

  it("scales each token by its weight and brings the mean of all values back", () => {
    // Means: 2.5 before, (1 + 2 + 6 + 8) / 4 = 4.25 after; everything is then multiplied by 2.5 / 4.25.
    const weighted = applyWeights(Float32Array.of(1, 2, 3, 4), Float32Array.of(1, 2));
    const expected = [1, 2, 6, 8].map((value) => value * (2.5 / 4.25));
    expect([...weighted]).toEqual(expected.map((value) => expect.closeTo(value, 6)));
  });

  it("changes nothing but rounding when every token counts alike", () => {
    const weighted = applyWeights(Float32Array.of(1, -2, 3, 4), Float32Array.of(1.5, 1.5));
    expect([...weighted]).toEqual([1, -2, 3, 4].map((value) => expect.closeTo(value, 6)));
  });

  it("leaves the mean alone where values nearly cancel, rather than blow up or invert the embedding", () => {
    const nearlyZeroMean = Float32Array.of(-1, 0.9, 1, -0.89); // the weight makes this mean 6.5 times larger
    expect([...applyWeights(nearlyZeroMean, Float32Array.of(1, 1.5))]).toEqual(
      [-1, 0.9, 1.5, -1.335].map((value) => expect.closeTo(value, 6)),
    );
    const meanChangesSign = Float32Array.of(1, 1, -1, -0.5);
    expect([...applyWeights(meanChangesSign, Float32Array.of(1, 2))]).toEqual([1, 1, -2, -1]);
    const noMean = Float32Array.of(1, -1, 1, -1);
    expect([...applyWeights(noMean, Float32Array.of(1, 2))]).toEqual([1, -1, 2, -2]);
  });

  it("can silence a token, and even all of them", () => {
    expect([...applyWeights(Float32Array.of(1, 1, 1, 1), Float32Array.of(0, 1))]).toEqual([0, 0, 2, 2]);
    expect([...applyWeights(Float32Array.of(1, 1, 1, 1), Float32Array.of(0, 0))]).toEqual([0, 0, 0, 0]);
  });

  it("does not change what it is given", () => {
    const embeddings = Float32Array.of(1, 2);
    applyWeights(embeddings, Float32Array.of(1, 2));
    expect([...embeddings]).toEqual([1, 2]);
  });
});

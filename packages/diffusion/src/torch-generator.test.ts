import { describe, expect, it } from "vitest";
import { TorchGenerator } from "./torch-generator.ts";

/** That the numbers are torch's is held by test/golden/numbers.test.ts; here is what torch has no opinion on. */
describe("TorchGenerator", () => {
  it("goes on from a position as if it had never stopped, in latents and in odd small draws", () => {
    for (const sizes of [[4096], [64, 17, 4096], [3], [3, 64], [1, 1, 33]]) {
      const generator = new TorchGenerator(2n ** 63n + 5n);
      for (const size of sizes) generator.randn(size);
      const restored = TorchGenerator.at(structuredClone(generator.position));
      expect(restored.randn(40), `after ${sizes}`).toEqual(generator.randn(40));
      expect(restored.randn(5), `after ${sizes}`).toEqual(generator.randn(5));
      expect(restored.position).toEqual(generator.position);
    }
  });

  it("needs no more than seed and draws between latents: no spare number is left", () => {
    const generator = new TorchGenerator(1);
    generator.randn(4 * 32 * 32);
    expect(generator.position).toEqual({ seed: 1n, draws: 4096, spareNormal: null });
    generator.randn(17);
    expect(generator.position).toEqual({ seed: 1n, draws: 4096 + 17 + 16, spareNormal: null });
  });

  it("has mean 0 and variance 1", () => {
    const normals = new TorchGenerator(3).randn(100_000);
    const mean = normals.reduce((sum, x) => sum + x, 0) / normals.length;
    const variance = normals.reduce((sum, x) => sum + x ** 2, 0) / normals.length;
    expect(Math.abs(mean)).toBeLessThan(0.01);
    expect(Math.abs(variance - 1)).toBeLessThan(0.01);
  });

  it("looks at the low 32 bits of a seed, as torch does", () => {
    expect(new TorchGenerator(2n ** 32n + 7n).randn(16)).toEqual(new TorchGenerator(7).randn(16));
  });

  it.each([-1, 2n ** 64n, 0.5, 2 ** 53, Number.NaN])("takes seed %s for a bug", (seed) => {
    expect(() => new TorchGenerator(seed)).toThrow(/invariant broken: seed/);
  });
});

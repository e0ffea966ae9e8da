import { readFileSync } from "node:fs";
import { perRowTimestep, readOnnxGraph } from "@atelier/onnx";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { describe, expect, it } from "vitest";
import { largestError, readGolden, type Span } from "./golden-file.ts";

interface TimestepsCase {
  readonly dims: readonly number[];
  readonly timesteps: readonly number[];
  readonly sample: Span;
  readonly output: Span;
}

const golden = readGolden<TimestepsCase, { graphs: readonly string[] }>("timesteps");

const QUIET = { logSeverityLevel: 3, intraOpNumThreads: 1, interOpNumThreads: 1 } as const;

describe.each(golden.graphs)("a U-Net's beginning exported with one timestep for the batch, %s", (name) => {
  const original = readFileSync(new URL(`data/timesteps/${name}.onnx`, import.meta.url));
  const rewritten = perRowTimestep(original);

  it("takes a float32 timestep for each row once rewritten", () => {
    expect(timestepOf(original).dims).toEqual(name.includes("one") ? [1] : []);
    expect(timestepOf(bytesOf(rewritten))).toEqual({ name: "timestep", type: "float32", dims: ["batch"] });
  });

  it.each(golden.cases)("computes with $timesteps what torch computes", async (kase) => {
    const session = await InferenceSession.create(bytesOf(rewritten), QUIET);
    const { out_sample } = await session.run({
      sample: new Tensor("float32", golden.array(kase.sample), kase.dims),
      timestep: new Tensor("float32", Float32Array.from(kase.timesteps)),
    });
    expect(largestError(out_sample!.data as Float32Array, golden.array(kase.output))).toBeLessThan(1e-5);
    await session.release();
  });

  it("gives each row bit for bit what the original gives it in a run of its own", async () => {
    const kase = golden.cases.find(({ timesteps }) => timesteps.every(Number.isInteger))!;
    const sample = golden.array(kase.sample);
    const size = sample.length / kase.timesteps.length;
    const dims = [1, ...kase.dims.slice(1)];
    const together = await InferenceSession.create(bytesOf(rewritten), QUIET);
    const alone = await InferenceSession.create(original, QUIET);
    const both = await together.run({
      sample: new Tensor("float32", sample, kase.dims),
      timestep: new Tensor("float32", Float32Array.from(kase.timesteps)),
    });
    for (const [i, timestep] of kase.timesteps.entries()) {
      const { out_sample } = await alone.run({
        sample: new Tensor("float32", sample.slice(i * size, (i + 1) * size), dims),
        timestep: numberOf(timestep, timestepOf(original)),
      });
      const row = (both["out_sample"]!.data as Float32Array).slice(i * size, (i + 1) * size);
      expect(row).toEqual(out_sample!.data);
    }
    await together.release();
    await alone.release();
  });
});

function bytesOf(result: ReturnType<typeof perRowTimestep>): Uint8Array {
  if ("cannot" in result) throw new Error(result.cannot);
  return result.bytes;
}

function timestepOf(bytes: Uint8Array) {
  return readOnnxGraph(bytes).inputs.find(({ name }) => name === "timestep")!;
}

/** One timestep as the original graph asks for it. */
function numberOf(timestep: number, { type, dims }: ReturnType<typeof timestepOf>): Tensor {
  const shape = dims.length === 0 ? [] : [1];
  if (type === "int64") return new Tensor("int64", BigInt64Array.of(BigInt(timestep)), shape);
  if (type === "int32") return new Tensor("int32", Int32Array.of(timestep), shape);
  return new Tensor("float32", Float32Array.of(timestep), shape);
}

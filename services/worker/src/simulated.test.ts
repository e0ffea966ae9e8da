import sharp from "sharp";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type SpawnedWorker, spawnWorker } from "./testing/spawn-worker.ts";
import { TEST_BUNDLE } from "./testing/test-bundle.ts";
import { WorkerClient } from "./testing/worker-client.ts";

describe("a worker on a simulated GPU", () => {
  let worker: SpawnedWorker;
  let client: WorkerClient;

  beforeAll(async () => {
    worker = spawnWorker({
      ATELIER_MODELS: TEST_BUNDLE,
      ATELIER_DEVICE: "simulated",
      ATELIER_SIMULATED_GPU: "a100",
    });
    const { address } = await worker.said("listening");
    await worker.said("ready");
    client = new WorkerClient(address);
  });
  afterAll(async () => {
    client.close();
    worker.process.kill("SIGTERM");
    await worker.exited;
  });

  it("says so in its state", async () => {
    expect(await client.state()).toMatchObject({ ready: true, device: "simulated:a100", simulated: true });
  });

  it("says so in every receipt, on every picture and on every preview, and takes the GPU's time", async () => {
    const generation = client.generate({ width: 256, height: 256, steps: 5, seed: 3n }, { previewEverySteps: 2 });
    await generation.ended;
    const { receipt } = generation.all("completed")[0]!;
    expect(receipt).toMatchObject({ device: "simulated:a100", simulated: true });
    // A quarter of the native area: 3/4 of 15.2 ms a step, by the tables.
    expect(receipt!.times!.denoiseMs).toBeGreaterThan(5 * 11.4 - 6);

    await expectMarked(generation.all("image")[0]!.data, 256);
    const previews = generation.all("progress").flatMap(({ preview }) => (preview.length > 0 ? [preview] : []));
    expect(previews.length).toBeGreaterThan(0);
    for (const preview of previews) await expectMarked(preview, 32);
  });

  it("makes another picture of another seed or prompt, and the same of the same", async () => {
    const [first, again, otherSeed, otherPrompt] = await Promise.all([
      picture({}),
      picture({}),
      picture({ seed: 8n }),
      picture({ prompt: "a blue sofa" }),
    ]);
    expect(Buffer.compare(first!, again!)).toBe(0);
    expect(Buffer.compare(first!, otherSeed!)).not.toBe(0);
    expect(Buffer.compare(first!, otherPrompt!)).not.toBe(0);
  });

  async function picture(parameters: Parameters<WorkerClient["generate"]>[0]): Promise<Uint8Array> {
    const generation = client.generate(parameters);
    await generation.ended;
    return generation.all("image")[0]!.data;
  }
});

/** The band across the middle reaches both edges; the stripes along the upper one are black and white. */
async function expectMarked(file: Uint8Array, side: number): Promise<void> {
  const { data, info } = await sharp(file).raw().toBuffer({ resolveWithObject: true });
  expect(info).toMatchObject({ width: side, height: side, channels: 3 });
  const middle = data.subarray((side / 2) * side * 3, (side / 2 + 1) * side * 3);
  expect([middle[0], middle.at(-1)]).toEqual([0, 0]);
  const top = new Set(data.subarray(0, side * 3));
  expect([...top].toSorted((a, b) => a - b)).toEqual([0, 255]);
}

import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { copyBundle } from "../testing/copied-bundle.ts";
import { type SpawnedWorker, spawnWorker } from "../testing/spawn-worker.ts";
import { WorkerClient } from "../testing/worker-client.ts";

describe("a worker that embeds texts", () => {
  let folder: string;
  let worker: SpawnedWorker;
  let client: WorkerClient;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "atelier-embed-"));
    const dirs = [
      await copyBundle(join(folder, "with-clip"), "with-clip"),
      await withoutClip(await copyBundle(join(folder, "without-clip"), "without-clip")),
      await copyBundle(join(folder, "on-disk"), "on-disk"),
    ];
    worker = spawnWorker({ ATELIER_MODELS: dirs.join(","), ATELIER_PRELOAD: "with-clip,without-clip" });
    client = new WorkerClient((await worker.said("listening")).address);
    await worker.said("ready");
  });
  afterAll(async () => {
    client.close();
    worker.process.kill("SIGTERM");
    await worker.exited;
    await rm(folder, { recursive: true });
  });

  it.each(["with-clip", "without-clip"])(
    "finds the English and the Chinese words of one product nearer than another product: %s",
    async (model) => {
      const pairs = [
        ["a red mug", "红色马克杯"],
        ["a red sofa", "红色沙发"],
        ["a red umbrella", "红色雨伞"],
      ] as const;
      const english = await client.embedText(
        model,
        pairs.map(([text]) => text),
      );
      const chinese = await client.embedText(
        model,
        pairs.map(([, text]) => text),
      );
      const best = english.map((a) => {
        const scores = chinese.map((b) => dot(a, b));
        return scores.indexOf(Math.max(...scores));
      });
      expect(best).toEqual([0, 1, 2]);
    },
  );

  it.each(["with-clip", "without-clip"])(
    "gives vectors of length 1, in order, each of its text alone: %s",
    async (model) => {
      const texts = ["a red mug", "", "a blue sofa, ".repeat(40), "(a red mug:1.3)", ...Array(60).fill("红色马克杯")];
      const together = await client.embedText(model, texts);
      expect(together).toHaveLength(64);
      for (const vector of together) expect(dot(vector, vector)).toBeCloseTo(1, 5);
      for (const i of [0, 1, 2]) {
        const [alone] = await client.embedText(model, [texts[i]!]);
        expect(dot(alone!, together[i]!)).toBeCloseTo(1, 5);
      }
      expect(dot(together[0]!, together[3]!)).toBeCloseTo(1, 5); // weights make no difference
      expect(dot(together[0]!, together[2]!)).toBeLessThan(0.95);
    },
  );

  it("refuses by name what it cannot embed", async () => {
    const refused = (model: string, texts: readonly string[]) => expect(client.embedText(model, texts)).rejects;
    await refused("with-clip", []).toMatchObject({ code: "INVALID_REQUEST", field: "texts" });
    await refused("with-clip", Array(65).fill("a")).toMatchObject({ code: "INVALID_REQUEST", field: "texts" });
    await refused("with-clip", ["a", "b\0"]).toMatchObject({ code: "INVALID_REQUEST", field: "texts[1]" });
    await refused("with-clip", ["(mug:99)"]).toMatchObject({ code: "INVALID_REQUEST", field: "texts[0]" });
    await refused("with-clip", ["a".repeat(20_000)]).toMatchObject({ code: "INVALID_REQUEST", field: "texts[0]" });
    await refused("unheard-of", ["a"]).toMatchObject({ code: "MODEL_NOT_FOUND", field: "model" });
    await refused("on-disk", ["a"]).toMatchObject({ code: "NO_WORKER", field: "model" });
  });

  it("goes on drawing meanwhile", async () => {
    const generation = client.generate({ model: "with-clip", steps: 8 });
    await Promise.all(Array.from({ length: 20 }, () => client.embedText("with-clip", ["a red mug", "红色马克杯"])));
    await generation.ended;
    expect(generation.all("image")).toHaveLength(1);
  });
});

/** The same bundle as if it had been made without the CLIP pair. */
async function withoutClip(dir: string): Promise<string> {
  const path = join(dir, "atelier.json");
  const manifest = JSON.parse(await readFile(path, "utf8")) as { parts: Record<string, unknown> };
  const parts = Object.fromEntries(Object.entries(manifest.parts).filter(([file]) => !file.startsWith("clip/")));
  await rm(join(dir, "clip"), { recursive: true });
  await writeFile(path, JSON.stringify({ ...manifest, parts }));
  return dir;
}

function dot(a: readonly number[], b: readonly number[]): number {
  return a.reduce((sum, x, i) => sum + x * b[i]!, 0);
}

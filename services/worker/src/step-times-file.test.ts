import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ManualClock } from "@atelier/core";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { StepTimesFile } from "./step-times-file.ts";

describe("StepTimesFile", () => {
  let dir: string;
  let problems: string[];
  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), "atelier-state-"));
    problems = [];
  });
  afterEach(() => rm(dir, { recursive: true }));

  it("gives back what was saved, to the same model on the same device alone", async () => {
    await file().save([time("tiny")], models({ tiny: "sha256:a" }));
    expect(await file().load(models({ tiny: "sha256:a" }))).toEqual([time("tiny")]);
    expect(await file().load(models({ renamed: "sha256:a" }))).toEqual([time("renamed")]);
    expect(await file().load(models({ tiny: "sha256:other" }))).toEqual([]);
    expect(await file({ device: "cuda 1" }).load(models({ tiny: "sha256:a" }))).toEqual([]);
    expect(problems).toEqual([]);
  });

  it("keeps what others have written of other models and devices", async () => {
    await file().save([time("tiny")], models({ tiny: "sha256:a" }));
    await file({ device: "cuda 1" }).save([time("tiny", 2)], models({ tiny: "sha256:a" }));
    await file().save([time("large", 9)], models({ large: "sha256:b", unused: "sha256:c" }));
    expect(await file().load(models({ tiny: "sha256:a", large: "sha256:b" }))).toEqual([
      time("tiny"),
      time("large", 9),
    ]);
    expect(await file({ device: "cuda 1" }).load(models({ tiny: "sha256:a" }))).toEqual([time("tiny", 2)]);
  });

  it("makes the folder, and leaves nothing beside the file", async () => {
    await file({ dir: join(dir, "new") }).save([time("tiny")], models({ tiny: "sha256:a" }));
    expect(await readdir(join(dir, "new"))).toEqual(["step-times.json"]);
  });

  it("has nothing to say where there is no file yet", async () => {
    expect(await file().load(models({ tiny: "sha256:a" }))).toEqual([]);
    expect(problems).toEqual([]);
  });

  it.each([
    ["is cut short", '{"version":1,"devices":{"cpu 4":{'],
    ["is of another version", '{"version":2,"devices":{}}'],
    ["holds a time below zero", text({ ms: -1 })],
    ["holds a time that is no number", text({ ms: null })],
    ["holds half a row", text({ rows: 0.5 })],
  ])("does without a file that %s, says so, and replaces it", async (_, contents) => {
    await writeFile(join(dir, "step-times.json"), contents);
    expect(await file().load(models({ tiny: "sha256:a" }))).toEqual([]);
    expect(problems).toHaveLength(1);
    expect(problems[0]).toMatch(/step-times\.json is not read, and step times are learned anew/);
    await file().save([time("tiny")], models({ tiny: "sha256:a" }));
    expect(JSON.parse(await readFile(join(dir, "step-times.json"), "utf8"))).toMatchObject({ version: 1 });
  });

  it("says that it cannot write, and goes on", async () => {
    await writeFile(join(dir, "taken"), "");
    await file({ dir: join(dir, "taken") }).save([time("tiny")], models({ tiny: "sha256:a" }));
    expect(problems.some((problem) => problem.includes("cannot be written"))).toBe(true);
  });

  it("writes at most once in ten seconds while work goes on", async () => {
    const clock = new ManualClock();
    const sometimes = file({ clock });
    let asked = 0;
    const times = () => {
      asked += 1;
      return [time("tiny")];
    };
    for (let second = 0; second < 35; second++) {
      sometimes.saveSometimes(times, models({ tiny: "sha256:a" }));
      clock.advance(1000);
    }
    await sometimes.save([time("tiny")], models({ tiny: "sha256:a" }));
    expect(asked).toBe(3);
  });

  function file({ device = "cpu 4", clock = new ManualClock(), dir: folder = dir } = {}): StepTimesFile {
    return new StepTimesFile({ dir: folder, device, clock, onProblem: ({ detail }) => problems.push(detail) });
  }
});

function time(model: string, ms = 20) {
  return { model, height: 32, width: 32, threads: 4, rows: 2, ms };
}

function models(digests: Record<string, string>): ReadonlyMap<string, string> {
  return new Map(Object.entries(digests));
}

function text(change: object): string {
  const { model: _, ...entry } = time("tiny");
  return JSON.stringify({ version: 1, devices: { "cpu 4": { "sha256:a": [{ ...entry, ...change }] } } });
}

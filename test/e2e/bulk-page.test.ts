import { execFile } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type RunningSystem, startSystem } from "../support/running-system.ts";

const root = join(import.meta.dirname, "../..");
const page = readFileSync(join(root, "docs/bulk.md"), "utf8");

/** What the page shows to type, each with the JSON that it says comes out. */
const examples = Array.from(
  page.matchAll(/```sh\n([\s\S]*?)```(?:\n\n```json\n([\s\S]*?)```)?/g),
  ([, code, answer]) => ({
    code: code!,
    answer,
  }),
);

const QUEUES = [
  { queue: "an SQLite file", args: [] },
  { queue: "NATS", args: ["--cluster"] },
] as const;

describe.each(QUEUES)("docs/bulk.md on $queue", ({ args }) => {
  let system: RunningSystem;
  let folder: string;
  let receiverPort: number;

  beforeAll(async () => {
    // A device that computes nothing, since 800 pictures on a CPU take minutes; all else is as a user starts it.
    const env = { ATELIER_WEBHOOK_PRIVATE: "allow", ATELIER_SIMULATED_SPEED: "20" };
    system = await startSystem([...args, "--device", "simulated"], env);
    folder = mkdtempSync(join(tmpdir(), "atelier-bulk-page-"));
    symlinkSync(join(root, "docs"), join(folder, "docs"));
    receiverPort = await freePort();
  });
  afterAll(async () => {
    await system?.stop();
    rmSync(folder, { recursive: true, force: true });
  });

  it.each(examples.map(({ code }, i) => [code.split("\n")[0]!.slice(0, 80), i] as const))(
    "is true of %s (%i)",
    async (_line, i) => {
      const { code, answer } = examples[i]!;
      const here = code.replaceAll("http://127.0.0.1:8080", system.url).replaceAll("8099", String(receiverPort));
      const output = await run(here);
      if (answer !== undefined) expectToHold(JSON.parse(output), JSON.parse(answer), "the answer");
      if (code.includes("--dry-run")) expect(tableOf(output)).toEqual(tableOf(page).slice(0, 4));
      if (code.startsWith("cat calls.txt")) {
        expect(output.split("\n").slice(1)).toEqual([
          expect.stringMatching(/^job\.started: autumn launch, \d+ of 400 pictures$/),
          "job.done: autumn launch, 400 of 400 pictures",
          "",
        ]);
      }
    },
    120_000,
  );

  it("leaves 400 pictures under the names that the page shows", () => {
    const files = readdirSync(join(folder, "pictures")).filter((file) => file.endsWith(".png"));
    expect(files).toHaveLength(400);
    expect(files.map((file) => file.normalize("NFC"))).toContain("QH-001-T恤-studio.png");
    expect(readFileSync(join(folder, "manifest.jsonl"), "utf8").trim().split("\n")).toHaveLength(400);
    expect(readFileSync(join(folder, "launch.zip")).toString("latin1", 0, 2)).toBe("PK");
  });

  /** As a user's shell would, in a folder that looks like the project's. */
  function run(code: string): Promise<string> {
    const npx = 'npx() { "$@"; }\ncurl() { command curl --fail-with-body "$@"; }\n';
    const env = {
      ...process.env,
      PATH: `${join(root, "node_modules/.bin")}:${process.env["PATH"]}`,
      ATELIER_URL: system.url,
      PORT: String(receiverPort),
    };
    return new Promise((resolve, reject) => {
      execFile(
        "bash",
        ["-euo", "pipefail", "-c", npx + code],
        { cwd: folder, env, timeout: 110_000 },
        (error, stdout, stderr) =>
          error === null ? resolve(stdout) : reject(new Error(`${error.message}\n${stdout.slice(0, 500)}${stderr}`)),
      );
    });
  }
});

describe("docs/bulk.md", () => {
  it("shows the files that it names as they are", () => {
    const [, shown] = /```json file=docs\/examples\/launch\/job\.json\n([\s\S]*?)```/.exec(page)!;
    expect(shown).toBe(readFileSync(join(root, "docs/examples/launch/job.json"), "utf8"));
    const sheet = readFileSync(join(root, "docs/examples/launch/products.csv"), "utf8");
    const [, rows] = /```csv\n([\s\S]*?)```/.exec(page)!;
    expect(sheet.startsWith(rows!)).toBe(true);
    expect(sheet.trim().split("\n")).toHaveLength(101);
  });

  it("has its examples", () => {
    expect(examples.length).toBeGreaterThan(7);
  });
});

/** Rows of the preview's table: its file, seed, preset and prompt are the same wherever it runs. */
function tableOf(text: string): string[] {
  return [...text.matchAll(/^1 +QH-001\S+ .*$/gm)].map(([row]) => row.trim());
}

/** Everything that is shown is there; texts that end in "..." are cut, and numbers with a fraction are of one run. */
function expectToHold(actual: unknown, shown: unknown, where: string): void {
  if (Array.isArray(shown)) {
    expect(Array.isArray(actual), where).toBe(true);
    for (const [i, item] of shown.entries()) expectToHold((actual as unknown[])[i], item, `${where}[${i}]`);
  } else if (typeof shown === "object" && shown !== null) {
    for (const [key, value] of Object.entries(shown)) {
      expectToHold((actual as Record<string, unknown>)?.[key], value, `${where}.${key}`);
    }
  } else if (typeof shown === "string" && shown.endsWith("...")) expect(typeof actual, where).toBe("string");
  else if (typeof shown === "number" && !Number.isInteger(shown)) expect(typeof actual, where).toBe("number");
  else expect(actual, where).toBe(shown);
}

function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address() as { port: number };
      server.close(() => resolve(port));
    });
  });
}

import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type RunningSystem, startSystem } from "../support/running-system.ts";

const root = join(import.meta.dirname, "../..");
const page = ["docs/api.md", "docs/openai.md", "docs/a1111.md"]
  .map((file) => readFileSync(join(root, file), "utf8"))
  .join("\n");

/** What the page shows to type, each with the JSON that it says comes out, in the pages' order. */
const examples = Array.from(
  page.matchAll(/```(sh|js)\n([\s\S]*?)```(?:\n\n```json\n([\s\S]*?)```)?/g),
  ([, language, code, answer]) => ({ language: language!, code: code!, answer }),
);

describe("docs/api.md, docs/openai.md and docs/a1111.md", () => {
  let system: RunningSystem;
  let folder: string;

  beforeAll(async () => {
    system = await startSystem();
    folder = mkdtempSync(join(tmpdir(), "atelier-api-page-"));
  });
  afterAll(async () => {
    await system?.stop();
    rmSync(folder, { recursive: true });
  });

  it("has examples of every kind", () => {
    expect(examples.length).toBeGreaterThan(10);
    expect(new Set(examples.map(({ language }) => language))).toEqual(new Set(["sh", "js"]));
  });

  // In the page's order: later ones use what earlier ones wrote.
  it.each(examples.map((example, i) => [firstLine(example.code), i] as const))(
    "is true of %s (%i)",
    async (_line, i) => {
      const { language, code, answer } = examples[i]!;
      const shown = answer === undefined ? undefined : (JSON.parse(answer) as unknown);
      const [, grpc] = /for gRPC, (\S+:\d+)/.exec(system.output())!;
      const here = code.replaceAll("http://127.0.0.1:8080", system.url).replaceAll("127.0.0.1:50050", grpc!);
      const output =
        language === "js"
          ? await run(process.execPath, ["--input-type=module", "--eval", here], root)
          : await run("bash", ["-euo", "pipefail", "-c", isRefusal(shown) ? here : FAILING_CURL + here], folder);
      if (shown !== undefined) expectToHold(JSON.parse(output), shown, "the answer");
      else if (language === "js") expect(output).toMatch(/^image\/png, \d+ bytes, seed 7$/m);
      for (const [, file] of code.matchAll(/-o (\S+\.(?:png|webp))/g)) {
        expect(statSync(join(folder, file!)).size, file).toBeGreaterThan(1_000);
      }
    },
  );
});

/** A refusal ends the example. */
const FAILING_CURL = 'curl() { command curl --fail-with-body "$@"; }\n';

function isRefusal(shown: unknown): boolean {
  return typeof shown === "object" && shown !== null && "error" in shown;
}

/** Everything that is shown is there, of the same kind; texts and numbers are of one run. A key "..." leaves out the rest. */
function expectToHold(actual: unknown, shown: unknown, where: string): void {
  if (Array.isArray(shown)) {
    expect(Array.isArray(actual), where).toBe(true);
    for (const [i, item] of shown.entries()) expectToHold((actual as unknown[])[i], item, `${where}[${i}]`);
  } else if (typeof shown === "object" && shown !== null) {
    for (const [key, value] of Object.entries(shown)) {
      if (key !== "...") expectToHold((actual as Record<string, unknown>)?.[key], value, `${where}.${key}`);
    }
  } else if (typeof shown === "boolean" || shown === null) expect(actual, where).toBe(shown);
  else expect(typeof actual, where).toBe(typeof shown);
}

function firstLine(code: string): string {
  return code
    .split("\n")
    .find((line) => line !== "" && !line.startsWith("import"))!
    .slice(0, 90);
}

function run(command: string, args: readonly string[], cwd: string): Promise<string> {
  return new Promise((resolve, reject) => {
    execFile(command, args, { cwd, timeout: 60_000, maxBuffer: 64 * 1024 * 1024 }, (error, stdout, stderr) =>
      error === null ? resolve(stdout) : reject(new Error(`${error.message}\n${stdout.slice(0, 500)}${stderr}`)),
    );
  });
}

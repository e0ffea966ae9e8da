import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";

const root = join(import.meta.dirname, "..");

/** What the files of each folder may import of ours. Tests and benches (`test/`) may import anything. */
const MAY_IMPORT: Record<string, readonly string[]> = {
  proto: [],
  scripts: ["@atelier/lifecycle", "@atelier/gateway/config", "@atelier/jobs/config", "@atelier/worker/config"],
  "packages/core": [],
  "packages/diffusion": ["@atelier/core"],
  "packages/lifecycle": [],
  "packages/onnx": ["@atelier/core"],
  "packages/telemetry": ["@atelier/core"],
  "packages/rpc": ["@atelier/core", "@atelier/proto"],
  "packages/object-store": ["@atelier/core"],
  "packages/job-queue": ["@atelier/core", "@atelier/proto"],
  "packages/http": ["@atelier/core", "@atelier/telemetry"],
  "services/worker": [
    "@atelier/core",
    "@atelier/lifecycle",
    "@atelier/diffusion",
    "@atelier/job-queue",
    "@atelier/object-store",
    "@atelier/onnx",
    "@atelier/proto",
    "@atelier/rpc",
    "@atelier/telemetry",
  ],
  "services/gateway": [
    "@atelier/core",
    "@atelier/http",
    "@atelier/lifecycle",
    "@atelier/proto",
    "@atelier/rpc",
    "@atelier/telemetry",
  ],
  "services/jobs": [
    "@atelier/core",
    "@atelier/http",
    "@atelier/job-queue",
    "@atelier/lifecycle",
    "@atelier/object-store",
    "@atelier/proto",
    "@atelier/telemetry",
  ],
  "services/cli": ["@atelier/core", "@atelier/lifecycle"],
};

const sources = execFileSync("git", ["ls-files", "--cached", "--others", "--exclude-standard", "*.ts"], {
  cwd: root,
  encoding: "utf8",
})
  .split("\n")
  .filter((file) => file !== "" && !file.startsWith("test/") && file.includes("/"));

describe("imports point down", () => {
  it("finds the sources", () => {
    expect(sources.length).toBeGreaterThan(20);
  });

  it.each(sources)("%s", (file) => {
    const folder = Object.keys(MAY_IMPORT).find((name) => file.startsWith(`${name}/`));
    expect(folder, `${file} lies in a folder that the table knows`).toBeDefined();
    for (const specifier of specifiers(file)) {
      if (specifier.startsWith("@atelier/")) expect(MAY_IMPORT[folder!], file).toContain(specifier);
      if (specifier.startsWith(".")) {
        const target = join(file, "..", specifier);
        expect(target.startsWith(`${folder}/`), `${file} reaches ${specifier} through its package's name`).toBe(true);
      }
    }
  });
});

function specifiers(file: string): string[] {
  const text = readFileSync(join(root, file), "utf8");
  return [...text.matchAll(/(?:from|import)\s*\(?\s*"([^"]+)"/g)].map((match) => match[1]!);
}

/**
 * `npm run verify:static`: what can be checked without running the services. Stops at nothing, so that one run names
 * everything that is wrong.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const root = join(import.meta.dirname, "..");
const scratch = mkdtempSync(join(tmpdir(), "atelier-generated-"));

/** Those of scripts/generate that make something. */
const generators = readdirSync(join(root, "scripts/generate")).filter((file) => {
  return file.endsWith(".ts") && !file.endsWith(".test.ts") && file !== "generated-file.ts";
});

const checks: readonly { name: string; command: string; args: readonly string[]; cwd?: string }[] = [
  { name: "style (biome)", command: "biome", args: ["check", "--error-on-warnings", "."] },
  { name: "types (tsc)", command: "tsc", args: ["-p", "tsconfig.json"] },
  { name: "proto style (buf lint)", command: "buf", args: ["lint"], cwd: "proto" },
  {
    name: "proto compatible with what was released (buf breaking)",
    command: "buf",
    args: ["breaking", "--against", "released.binpb"],
    cwd: "proto",
  },
  ...["proto", "packages/onnx"].flatMap((folder) => [
    {
      name: `${folder}: generates (buf generate)`,
      command: "buf",
      args: ["generate", "-o", join(scratch, folder)],
      cwd: folder,
    },
    {
      name: `${folder}: the generated code is what its proto files give`,
      command: "diff",
      args: ["-r", join(scratch, folder, "gen"), join(folder, "gen")],
    },
  ]),
  ...generators.map((file) => ({
    name: `scripts/generate/${file}: what is committed is what it makes`,
    command: "node",
    args: [join("scripts/generate", file), "--check"],
  })),
];

const failed = checks.filter(({ name, command, args, cwd }) => {
  const { status, error } = spawnSync(command, args, { cwd: join(root, cwd ?? "."), stdio: "inherit" });
  if (error) console.error(error.message);
  console.log(`${status === 0 ? "ok  " : "FAIL"} ${name}`);
  return status !== 0;
});
rmSync(scratch, { recursive: true });
process.exit(failed.length > 0 ? 1 : 0);

/**
 * `npm run test:clients`: other programs' own clients, in Python, against a system as `npm start` starts it. Each file
 * beside this one is a program that finds it in ATELIER_URL. Needs Python and a way to the package registry; `npm test`
 * needs neither, and has the same clients of JavaScript.
 */
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { startSystem } from "../support/running-system.ts";

const here = import.meta.dirname;
const root = join(here, "../..");

const environment = execFileSync("bash", [join(root, "scripts/python-env.sh"), join(here, "requirements.txt"), "1"], {
  encoding: "utf8",
  stdio: ["ignore", "pipe", "inherit"],
}).trim();
const programs = readdirSync(here).filter((file) => file.endsWith(".py"));
const failed: string[] = [];
const system = await startSystem();
try {
  for (const program of programs) {
    console.log(`${program} against ${system.url}`);
    // Not spawnSync: what the system says meanwhile has to be read.
    const child = spawn(join(environment, "bin/python"), ["-B", join(here, program)], {
      stdio: "inherit",
      env: { ...process.env, ATELIER_URL: system.url },
    });
    const [status] = await once(child, "exit");
    if (status !== 0) failed.push(program);
  }
} finally {
  await system.stop();
}
console.log(failed.length === 0 ? `${programs.length} clients passed` : `failed: ${failed.join(", ")}`);
process.exitCode = failed.length === 0 ? 0 : 1;

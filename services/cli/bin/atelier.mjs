#!/usr/bin/env node
/**
 * The `atelier` command. Plain JavaScript, since it may be started by an old Node before anything is installed: it
 * installs what is missing, then runs src/main.ts on the Node that was installed. Its syntax is kept old for the same
 * reason as bootstrap.mjs's.
 */
import { spawn } from "node:child_process";
import module from "node:module";
import { constants } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { bootstrapOrExit } from "../../../bootstrap.mjs";

/** The first Node that runs TypeScript files directly and that our packages are tested on. */
const NODE_MAJOR = 24;

const cli = dirname(dirname(fileURLToPath(import.meta.url)));
bootstrapOrExit().then(() => {
  keepCompiledCode(join(cli, "../../node_modules/.cache/node-compile"));
  if (Number(process.versions.node.split(".")[0]) >= NODE_MAJOR) return import("../src/main.ts");
  return runInstalledNode();
});

/** For us and the services that we spawn: it halves what loading their modules costs, 0.3 s of CPU for each process. */
function keepCompiledCode(folder) {
  process.env.NODE_COMPILE_CACHE = process.env.NODE_COMPILE_CACHE || folder;
  if (module.enableCompileCache) module.enableCompileCache(process.env.NODE_COMPILE_CACHE);
}

function runInstalledNode() {
  const node = join(cli, "../../node_modules/node/bin", process.platform === "win32" ? "node.exe" : "node");
  const child = spawn(node, [join(cli, "src/main.ts"), ...process.argv.slice(2)], { stdio: "inherit" });
  // The child decides what a signal means. From a terminal it gets Ctrl-C twice, from there and from here; it counts
  // signals so close together as one.
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => child.kill(signal));
  child.on("error", (error) => {
    console.error(`${node} does not start: ${error.message}`);
    process.exit(1);
  });
  child.on("exit", (code, signal) => process.exit(code === null ? 128 + constants.signals[signal] : code));
}

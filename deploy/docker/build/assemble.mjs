/**
 * Makes what an image holds of a service, in the build stage: `node assemble.mjs SERVICE SOURCE TARGET`. TARGET holds the
 * node_modules that npm installed for this workspace alone; the sources of the workspaces that it links go beside them,
 * and what this platform never loads goes away.
 */
import fs from "node:fs";
import { join, relative } from "node:path";

const [service, source, target] = process.argv.slice(2);
const modules = join(target, "node_modules");

// npm made the manifests' folders known; those that this service links are the ones that it needs.
const linked = fs
  .readdirSync(join(modules, "@atelier"))
  .map((name) => relative(target, fs.realpathSync(join(modules, "@atelier", name))));
const workspaces = [...new Set([`services/${service}`, ...linked])];
for (const folder of ["proto", "packages", "services", "test"])
  fs.rmSync(join(target, folder), { recursive: true, force: true });
for (const workspace of workspaces) {
  fs.cpSync(join(source, workspace), join(target, workspace), {
    recursive: true,
    filter: (path) => !/\/testing(\/|$)/.test(path),
  });
}
fs.cpSync(join(source, "LICENSE"), join(target, "LICENSE"));

const here = `${process.platform}-${process.arch}`;
prune("onnxruntime-node/bin/napi-v*/*/*", (path) => path.endsWith(`/${process.platform}/${process.arch}`));
prune("**/prebuilds/*", (path) => path.includes(here));
// The C++ sources of a binding that is there already built.
prune("usearch/{binding.gyp,c,cmake,cpp,include,numkong}", () => false);
// For compilers and debuggers.
prune("**/*.{d.ts,d.mts,d.cts,map}", () => false);

console.log(`${service}: ${workspaces.sort().join(", ")}`);

/** Deletes what matches `pattern` below node_modules and is not to be kept. */
function prune(pattern, kept) {
  for (const path of fs.globSync(pattern, { cwd: modules })) {
    if (!kept(`/${path}`)) fs.rmSync(join(modules, path), { recursive: true, force: true });
  }
}

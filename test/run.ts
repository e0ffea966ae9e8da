/**
 * `npm test`: every vitest file of the configuration, or those named on the command line. `--config FILE` takes another
 * configuration, of a suite that runs on its own. The last line is `N passed, N failed`
 * (`, N skipped` where any was), which counts files that could not even be read as failures.
 */
import { parseArgs } from "node:util";
import { createVitest } from "vitest/node";

const { values, positionals: filters } = parseArgs({ options: { config: { type: "string" } }, allowPositionals: true });
const config = values.config === undefined ? {} : { config: values.config };
const vitest = await createVitest("test", { run: true, watch: false, ...config });
await vitest.start(filters);

const counts = { passed: 0, failed: 0, skipped: 0 };
for (const module of vitest.state.getTestModules()) {
  if (module.errors().length > 0) counts.failed++;
  for (const test of module.children.allTests()) {
    const { state } = test.result();
    counts[state === "pending" ? "failed" : state]++;
  }
}
counts.failed += vitest.state.getUnhandledErrors().length;
await vitest.close();

if (counts.passed + counts.failed === 0) {
  console.error(`no test matches ${filters.join(" ") || "the configuration"}`);
  counts.failed = 1;
}
const skipped = counts.skipped > 0 ? `, ${counts.skipped} skipped` : "";
console.log(`${counts.passed} passed, ${counts.failed} failed${skipped}`);
process.exit(counts.failed > 0 ? 1 : 0);

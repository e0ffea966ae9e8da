/**
 * `npm run bench -- NAME [options]`: runs one bench of this folder. It prints a table for people; the last line is one
 * JSON object {"bench": NAME, "ratio": number, ...}. Timings are benches, never tests: a goal that is missed is said,
 * and is no failure.
 */
import { readdirSync } from "node:fs";
import { parseArgs } from "node:util";
import type { Bench } from "./support/bench.ts";

const benches = readdirSync(import.meta.dirname)
  .filter((file) => file.endsWith(".ts") && file !== "main.ts")
  .map((file) => file.slice(0, -".ts".length));

const [name, ...rest] = process.argv.slice(2);
if (name === undefined || name === "--help" || name === "-h" || !benches.includes(name)) {
  const known = name === undefined || name.startsWith("-");
  if (!known) console.error(`there is no bench "${name}"`);
  await printHelp();
  process.exit(known ? 0 : 2);
}

const bench = await load(name);
const result = await bench.run(readOptions(bench, rest));
const { ratio, goal, ...figures } = result;
const reached = result.less_is_better ? ratio <= goal : ratio >= goal;
console.log(
  `\nratio ${ratio}, goal ${goal}${result.less_is_better ? " or less" : ""}: ${reached ? "reached" : "NOT reached"}`,
);
console.log(JSON.stringify({ bench: name, ratio, goal, ...figures }));
process.exit(0);

async function load(file: string): Promise<Bench> {
  return (await import(`./${file}.ts`)).bench;
}

function readOptions({ options }: Bench, args: readonly string[]): Record<string, string> {
  const described = Object.entries(options).map(([option, { default: value }]) => {
    return [option, { type: "string", default: value }] as const;
  });
  const { values } = parseArgs({ args: [...args], options: Object.fromEntries(described), strict: true });
  return values as Record<string, string>;
}

async function printHelp(): Promise<void> {
  console.log("npm run bench -- NAME [options]\n");
  for (const file of benches) {
    const { description, options } = await load(file);
    console.log(`${file}: ${description}`);
    for (const [option, { default: value, help }] of Object.entries(options)) {
      console.log(`  --${option} ${value === "" ? "..." : value}`.padEnd(34), help);
    }
  }
}

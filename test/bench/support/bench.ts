import { availableParallelism, loadavg } from "node:os";

/** What each file of test/bench exports. */
export interface Bench {
  /** One line for the list of benches. */
  readonly description: string;
  /** Its options: name to default and meaning. All are given as `--name value`. */
  readonly options: Readonly<Record<string, { readonly default: string; readonly help: string }>>;
  /** Prints a table for people as it goes. */
  run(options: Readonly<Record<string, string>>): Promise<BenchResult>;
}

/** The last line of a bench, together with its name. */
export interface BenchResult {
  /** How we do against what we are held to or compared with; more is better, unless it says otherwise. */
  readonly ratio: number;
  /** The ratio aimed at. */
  readonly goal: number;
  readonly less_is_better?: true;
  readonly [figure: string]: unknown;
}

/**
 * How busy the machine is with other work: programs that want a core, for each core there is. Above about 0.2 times are
 * not worth much; ratios neither, where one side suffers more from waiting for its threads.
 */
export function otherLoad(): number {
  return round(loadavg()[0]! / availableParallelism());
}

export function warnIfBusy(load: number): void {
  if (load > 0.2)
    console.log(`The machine is busy with other work (load ${load} for each core): read these with care.\n`);
}

/** The middle of `values`; of an even count, the mean of the two in the middle. */
export function median(values: readonly number[]): number {
  if (values.length === 0) throw new Error("no values to take the median of");
  const sorted = values.toSorted((a, b) => a - b);
  const half = sorted.length / 2;
  return Number.isInteger(half) ? (sorted[half - 1]! + sorted[half]!) / 2 : sorted[Math.floor(half)]!;
}

/** The smallest of `values` that at least the share `p` of them (0..1) does not exceed: the nearest rank. */
export function percentile(values: readonly number[], p: number): number {
  if (values.length === 0) throw new Error("no values to take a percentile of");
  return values.toSorted((a, b) => a - b)[Math.max(0, Math.ceil(p * values.length) - 1)]!;
}

/** A value of the command line that must be a whole number of at least 1. */
export function count(options: Readonly<Record<string, string>>, name: string): number {
  const value = Number(options[name]);
  if (!Number.isInteger(value) || value < 1) throw new Error(`--${name} is ${options[name]}: it must be 1 or more`);
  return value;
}

export function printTable(rows: readonly (readonly (string | number)[])[]): void {
  const cells = rows.map((row) => row.map((cell) => (typeof cell === "number" ? cell.toFixed(0) : cell)));
  const widths = cells[0]!.map((_, i) => Math.max(...cells.map((row) => row[i]!.length)));
  for (const row of cells)
    console.log(row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join("  "));
}

export const round = (value: number, digits = 2) => Number(value.toFixed(digits));

/** One figure of a bench that is held to more than one. */
export interface Goal {
  readonly name: string;
  readonly value: number;
  readonly atLeast?: number;
  readonly atMost?: number;
}

export function printGoals(goals: readonly Goal[]): void {
  console.log("");
  for (const { name, value, atLeast, atMost } of goals) {
    const reached = (atLeast === undefined || value >= atLeast) && (atMost === undefined || value <= atMost);
    const bound = atLeast === undefined ? `at most ${atMost}` : `at least ${atLeast}`;
    console.log(`${name}: ${round(value, 3)}, ${bound}: ${reached ? "reached" : "NOT reached"}`);
  }
}

/**
 * Writes the tables of docs/configuration.md from the services' schemas: each variable's default and what it means, as
 * `.describe()` says there. What is around the tables is written by hand.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { gatewayEnvironment } from "@atelier/gateway/config";
import { jobsEnvironment } from "@atelier/jobs/config";
import { workerEnvironment } from "@atelier/worker/config";
import { z } from "zod";
import { writeOrCheck } from "./generated-file.ts";

interface Variable {
  readonly type?: string;
  readonly default?: unknown;
  readonly description?: string;
  /** What being unset comes to, where that is neither a constant nor simply nothing. */
  readonly unset?: string;
}

const PAGE = "docs/configuration.md";
const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;

const tables: Readonly<Record<string, string>> = {
  gateway: table(gatewayEnvironment, "ATELIER_"),
  worker: table(workerEnvironment, "ATELIER_"),
  jobs: table(jobsEnvironment, "ATELIER_"),
  traces: table(gatewayEnvironment, "OTEL_"), // the same of every service
};

const page = readFileSync(join(import.meta.dirname, "../..", PAGE), "utf8");
const places = [...page.matchAll(/<!-- made: (\w+) -->/g)].map((match) => match[1]!);
for (const name of Object.keys(tables)) {
  if (!places.includes(name)) throw new Error(`${PAGE} has no place for the table of ${name}: <!-- made: ${name} -->`);
}
const written = page.replace(
  /(<!-- made: (\w+) -->\n)[\s\S]*?(<!-- end -->)/g,
  (_all, begin: string, name: string, end) => {
    if (tables[name] === undefined) throw new Error(`${PAGE} asks for a table of ${name}, which nothing makes`);
    return `${begin}${tables[name]}\n${end}`;
  },
);
writeOrCheck(new Map([[PAGE, written]]));

function table(environment: z.ZodObject, prefix: string): string {
  const { properties, required = [] } = z.toJSONSchema(environment, { io: "input", unrepresentable: "any" });
  const rows = Object.entries(properties as Readonly<Record<string, Variable>>)
    .filter(([name]) => name.startsWith(prefix))
    .map(([name, variable]) => {
      if (variable.description === undefined) throw new Error(`${name} says nothing of itself: .describe() is missing`);
      // Of what is read from other text than it is shown as, the JSON schema knows no default.
      const read = environment.shape[name] as z.ZodType;
      const otherwise = required.includes(name)
        ? "required"
        : defaultOf(name, { default: read.safeParse(undefined).data, ...variable });
      return `| \`${name}\` | ${otherwise} | ${variable.description.replaceAll("|", "\\|")} |`;
    });
  return ["| variable | default | meaning |", "|---|---|---|", ...rows].join("\n");
}

function defaultOf(name: string, { type, default: value, unset }: Variable): string {
  if (unset !== undefined) return unset;
  if (typeof value === "number") return type === "integer" || type === "number" ? withTime(name, value) : bytes(value);
  if (typeof value === "object" && value !== null && "port" in value && "host" in value) {
    return `\`${value.host}:${value.port}\``;
  }
  const nothing = value === undefined || (typeof value === "object" && Object.keys(value ?? {}).length === 0);
  return nothing ? "none" : `\`${value}\``;
}

/** Long times are hard to read in milliseconds. */
function withTime(name: string, value: number): string {
  if (!name.endsWith("_MS") || value < HOUR_MS) return String(value);
  const [unit, count] = value % DAY_MS === 0 ? ["day", value / DAY_MS] : ["hour", value / HOUR_MS];
  return `${value} (${count} ${unit}${count === 1 ? "" : "s"})`;
}

function bytes(value: number): string {
  return value % 2 ** 30 === 0 ? `${value / 2 ** 30}GiB` : `${value / 2 ** 20}MiB`;
}

import { z } from "zod";

export class ConfigError extends Error {
  override readonly name = "ConfigError";
}

/**
 * Reads `env` through `schema` (keys are variable names) and returns a frozen value. Empty variables count as unset.
 *
 * @throws ConfigError naming every bad variable with its value, all in one message.
 */
export function readConfig<Shape extends z.ZodType>(
  schema: Shape,
  env: Record<string, string | undefined>,
): Readonly<z.output<Shape>> {
  const given = Object.fromEntries(Object.entries(env).filter(([, value]) => value !== undefined && value !== ""));
  const parsed = schema.safeParse(given);
  if (parsed.success) return Object.freeze(parsed.data);
  const lines = parsed.error.issues.map((issue) => {
    const name = String(issue.path[0] ?? "configuration");
    const value = given[name] === undefined ? "(unset)" : SECRET.test(name) ? "***" : withoutPassword(given[name]);
    return `  ${name}=${value}: ${issue.message}`;
  });
  throw new ConfigError(`the configuration is not usable:\n${lines.join("\n")}`);
}

/** Variables whose values are nobody's to read: a collector's headers hold its key. */
const SECRET = /_(?:TOKEN|HEADERS)$/;

/** A URL's user and password, whatever stands in them. */
const withoutPassword = (value: string): string => value.replace(/:\/\/.*@/, "://***@");

const BYTE_UNITS: Readonly<Record<string, number>> = {
  "": 1,
  b: 1,
  kib: 2 ** 10,
  mib: 2 ** 20,
  gib: 2 ** 30,
  tib: 2 ** 40,
  kb: 1e3,
  mb: 1e6,
  gb: 1e9,
  tb: 1e12,
};

/** Building blocks of config schemas; environment variables are text. */
export const fromEnv = {
  integer: (limits: { min: number; max: number }) =>
    z.coerce.number({ error: "must be a whole number" }).int().min(limits.min).max(limits.max),
  port: () => z.coerce.number({ error: "must be a port number" }).int().min(0).max(65_535),
  boolean: () => z.enum(["true", "false"], { error: "must be true or false" }).transform((text) => text === "true"),
  /** A whole number of bytes, or a number with a unit: "8GiB", "1.5 TB". */
  bytes: () =>
    z.string().transform((text, context) => {
      const match = /^(\d+(?:\.\d+)?)\s*([A-Za-z]*)$/.exec(text.trim());
      const unit = BYTE_UNITS[match?.[2]?.toLowerCase() ?? "none"];
      const bytes = unit === undefined ? Number.NaN : Math.round(Number(match?.[1]) * unit);
      if (Number.isSafeInteger(bytes) && bytes > 0) return bytes;
      context.addIssue({ code: "custom", message: `must be bytes, as 8589934592, 8GiB, 512MiB or 8GB` });
      return z.NEVER;
    }),
  list: () =>
    z.string().transform((text) =>
      text
        .split(",")
        .map((item) => item.trim())
        .filter((item) => item !== ""),
    ),
};

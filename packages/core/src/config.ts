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
    return `  ${name}=${given[name] ?? "(unset)"}: ${issue.message}`;
  });
  throw new ConfigError(`the configuration is not usable:\n${lines.join("\n")}`);
}

/** Building blocks of config schemas; environment variables are text. */
export const fromEnv = {
  integer: (limits: { min: number; max: number }) =>
    z.coerce.number({ error: "must be a whole number" }).int().min(limits.min).max(limits.max),
  port: () => z.coerce.number({ error: "must be a port number" }).int().min(0).max(65_535),
  boolean: () => z.enum(["true", "false"], { error: "must be true or false" }).transform((text) => text === "true"),
  list: () =>
    z.string().transform((text) =>
      text
        .split(",")
        .map((item) => item.trim())
        .filter((item) => item !== ""),
    ),
};

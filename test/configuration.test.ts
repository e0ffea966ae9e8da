import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";

const root = join(import.meta.dirname, "..");

/** Variables that a service's schema declares: keys at the start of a line of its config.ts. */
function declared(service: string): string[] {
  const text = readFileSync(join(root, `services/${service}/src/config.ts`), "utf8");
  return [...text.matchAll(/^ +(ATELIER_\w+):/gm)].map((match) => match[1]!).sort();
}

/** Variables in the table under the heading `service`. */
function documented(service: string): string[] {
  const text = readFileSync(join(root, "docs/configuration.md"), "utf8");
  const section = text.split(/^## /m).find((part) => part.startsWith(service)) ?? "";
  return [...section.matchAll(/^\| `(ATELIER_\w+)`/gm)].map((match) => match[1]!).sort();
}

describe("docs/configuration.md", () => {
  it.each(["gateway", "worker", "jobs"])("names exactly the variables that the %s reads", (service) => {
    expect(declared(service).length).toBeGreaterThan(5);
    expect(documented(service)).toEqual(declared(service));
  });
});

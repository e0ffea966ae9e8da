import { readFileSync } from "node:fs";
import { join } from "node:path";
import { gatewayEnvironment } from "@atelier/gateway/config";
import { jobsEnvironment } from "@atelier/jobs/config";
import { workerEnvironment } from "@atelier/worker/config";
import { describe, expect, it } from "vitest";
import { z } from "zod";

const root = join(import.meta.dirname, "..");

const ENVIRONMENTS = { gateway: gatewayEnvironment, worker: workerEnvironment, jobs: jobsEnvironment };
type Service = keyof typeof ENVIRONMENTS;

/** Our own variables in a service's schema; those of OpenTelemetry are documented by it. */
function declared(service: Service): string[] {
  const { properties = {} } = z.toJSONSchema(ENVIRONMENTS[service], { io: "input", unrepresentable: "any" });
  return Object.keys(properties)
    .filter((name) => name.startsWith("ATELIER_"))
    .sort();
}

/** Variables in the table under the heading `service`. */
function documented(service: string): string[] {
  const text = readFileSync(join(root, "docs/configuration.md"), "utf8");
  const section = text.split(/^## /m).find((part) => part.startsWith(service)) ?? "";
  return [...section.matchAll(/^\| `(ATELIER_\w+)`/gm)].map((match) => match[1]!).sort();
}

describe("docs/configuration.md", () => {
  it.each(["gateway", "worker", "jobs"] as const)("names exactly the variables that the %s reads", (service) => {
    expect(declared(service).length).toBeGreaterThan(5);
    expect(documented(service)).toEqual(declared(service));
  });
});

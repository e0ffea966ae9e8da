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

/** Variables in a service's schema: our own, or OpenTelemetry's. */
function declared(service: Service, prefix: "ATELIER_" | "OTEL_"): string[] {
  const { properties = {} } = z.toJSONSchema(ENVIRONMENTS[service], { io: "input", unrepresentable: "any" });
  return Object.keys(properties)
    .filter((name) => name.startsWith(prefix))
    .sort();
}

/** Variables in the table under the heading that begins so. */
function documented(heading: string): string[] {
  const text = readFileSync(join(root, "docs/configuration.md"), "utf8");
  const section = text.split(/^## /m).find((part) => part.startsWith(heading)) ?? "";
  return [...section.matchAll(/^\| `((?:ATELIER|OTEL)_\w+)`/gm)].map((match) => match[1]!).sort();
}

describe("docs/configuration.md", () => {
  it.each(["gateway", "worker", "jobs"] as const)("names exactly the variables that the %s reads", (service) => {
    expect(declared(service, "ATELIER_").length).toBeGreaterThan(5);
    expect(documented(service)).toEqual(declared(service, "ATELIER_"));
    expect(documented("Traces")).toEqual(declared(service, "OTEL_"));
  });
});

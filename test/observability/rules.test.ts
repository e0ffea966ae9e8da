import { globSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { promtool } from "../../scripts/services/programs.ts";
import { runProgram } from "../../scripts/services/run-program.ts";

const folder = join(import.meta.dirname, "../../deploy/observability/rules");
const ruleFiles = globSync("*.rules.yaml", { cwd: folder });
const testFiles = globSync("tests/*.test.yaml", { cwd: folder });
const rules = ruleFiles.map((file) => readFileSync(join(folder, file), "utf8")).join("\n");
const tests = testFiles.map((file) => readFileSync(join(folder, file), "utf8")).join("\n");
const alerts = [...rules.matchAll(/^ +- alert: (\w+)$/gm)].map((match) => match[1]!);

describe("rules for Prometheus", () => {
  it("are rules that Prometheus reads", async () => {
    expect(await run("check", "rules", ...ruleFiles)).toMatchObject({ code: 0 });
  });

  it("do in every history of tests/ what that expects: promtool's own tests", async () => {
    expect(await run("test", "rules", ...testFiles)).toMatchObject({ code: 0 });
  });

  it("are at least twenty alerts", () => {
    expect(alerts.length).toBeGreaterThanOrEqual(20);
  });

  it.each(alerts)("%s fires in one of those histories, and is silent in one", (alert) => {
    const checks = [...tests.matchAll(new RegExp(`alertname: ${alert}[,\\n]\\s+exp_alerts:(.*)`, "g"))];
    const silent = checks.filter((check) => check[1]!.includes("[]"));
    expect(silent.length).toBeGreaterThan(0);
    expect(checks.length).toBeGreaterThan(silent.length);
  });

  it.each(alerts)("%s says how urgent it is, what has happened, and where to read what to do", (alert) => {
    const rule = rules.slice(rules.indexOf(`- alert: ${alert}\n`)).split(/\n {6}- |\n {2}- name:/)[0]!;
    expect(rule).toMatch(/severity: (page|ticket)\b/);
    for (const text of ["summary", "summary_zh", "description"])
      expect(rule).toMatch(new RegExp(`${text}: ["'].{8,}["']`));
    expect(rule).toMatch(/runbook_url: docs\/runbooks\/[a-z-]+\.md/);
  });
});

async function run(...args: readonly string[]) {
  const { path, env } = await promtool();
  return runProgram(path, args, { cwd: folder, env });
}

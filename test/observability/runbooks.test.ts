import { existsSync, globSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { readPanels } from "../support/boards.ts";

const root = join(import.meta.dirname, "../..");
const folder = join(root, "docs/runbooks");
const pages = globSync("*.md", { cwd: folder }).filter((name) => name !== "README.md");
const rules = globSync("deploy/observability/rules/*.rules.yaml", { cwd: root })
  .map((file) => readFileSync(join(root, file), "utf8"))
  .join("\n");
const alerts = [...rules.matchAll(/- alert: (\w+)\n[\s\S]*?severity: (\w+)[\s\S]*?runbook_url: (\S+)/g)].map(
  ([, alert, severity, page]) => ({ alert: alert!, severity: severity!, page: page! }),
);
const panels = new Set(readPanels().map(({ board, title }) => `${board} › ${title}`));

describe("runbooks", () => {
  it.each(alerts)("$page says what to do about $alert, and how urgent it is", ({ alert, severity, page }) => {
    expect(readFileSync(join(root, page), "utf8")).toContain(`\`${alert}\` (${severity})`);
    expect(readFileSync(join(folder, "README.md"), "utf8")).toContain(`| \`${alert}\` | ${severity} |`);
  });

  it.each(pages)("%s is an alert's, is whole, and leads only to panels and pages that there are", (name) => {
    expect(alerts.map(({ page }) => page)).toContain(`docs/runbooks/${name}`);
    const text = readFileSync(join(folder, name), "utf8");
    for (const part of ["What callers see", "Confirm", "Do", "It is over when"])
      expect(text).toContain(`\n## ${part}\n\n`);
    for (const [, panel] of text.matchAll(/\*([^*\n]+ › [^*\n]+)\*/g)) expect(panels).toContain(panel);
    for (const [, link] of text.matchAll(/\]\(([^)#]+)(?:#[^)]*)?\)/g)) {
      expect([link, existsSync(join(folder, link!))]).toEqual([link, true]);
    }
  });
});

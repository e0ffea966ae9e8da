/** Copies what the chart ships of deploy/observability into its folder, beyond which Helm cannot read. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { writeOrCheck } from "./generated-file.ts";

const root = join(import.meta.dirname, "../..");
const chart = "helm/atelier/files";
const copies = [
  { from: "deploy/observability/rules", to: `${chart}/rules`, ending: ".rules.yaml" },
  { from: "deploy/observability/generated/dashboards", to: `${chart}/dashboards`, ending: ".json" },
];

const files = new Map<string, string | undefined>();
for (const { from, to, ending } of copies) {
  for (const file of filesOf(to, ending)) files.set(`${to}/${file}`, undefined);
  for (const file of filesOf(from, ending)) files.set(`${to}/${file}`, readFileSync(join(root, from, file), "utf8"));
}
writeOrCheck(files);

function filesOf(folder: string, ending: string): string[] {
  const path = join(root, folder);
  return existsSync(path) ? readdirSync(path).filter((file) => file.endsWith(ending)) : [];
}

import { GatewayClient, type ModelEntry } from "../client/gateway-client.ts";

const COLUMNS: readonly { title: string; of: (model: ModelEntry) => string }[] = [
  { title: "ID", of: (model) => model.id },
  { title: "FAMILY", of: (model) => model.family },
  { title: "NATIVE", of: (model) => `${model.native_width}x${model.native_height}` },
  { title: "MAX", of: ({ limits }) => `${limits.size_max}, by ${limits.size_multiple}` },
  { title: "DEFAULTS", of: ({ defaults }) => `${defaults.steps} steps, ${defaults.sampler}` },
  { title: "STATUS", of: statusOf },
  { title: "WEIGHTS", of: (model) => `${(model.weights_bytes / 2 ** 20).toFixed(0)} MiB` },
  { title: "WORKERS", of: (model) => String(model.workers_ready) },
  { title: "LICENSE", of: (model) => model.license },
];

/** "loading 42 %", "on disk". */
function statusOf({ status, progress }: ModelEntry): string {
  return status === "loading" ? `loading ${Math.floor(100 * progress)} %` : status.replace("_", " ");
}

/** Prints the models that a running system serves. @throws CliError when none answers. */
export async function listModels({ url, json }: { url: string; json: boolean }): Promise<void> {
  const models = await new GatewayClient(url, new AbortController().signal).models();
  console.log(json ? JSON.stringify(models, undefined, 2) : table(models));
}

function table(models: readonly ModelEntry[]): string {
  if (models.length === 0) return "No worker has reported a model yet.";
  const rows = [COLUMNS.map(({ title }) => title), ...models.map((model) => COLUMNS.map(({ of }) => of(model)))];
  const widths = COLUMNS.map((_, i) => Math.max(...rows.map((row) => row[i]!.length)));
  return rows
    .map((row) =>
      row
        .map((cell, i) => cell.padEnd(widths[i]!))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}

import { GatewayClient, type ModelEntry, type Server } from "../client/gateway-client.ts";
import { type Column, table } from "../terminal/table.ts";

const COLUMNS: readonly Column<ModelEntry>[] = [
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
export async function listModels({ server, json }: { server: Server; json: boolean }): Promise<void> {
  const models = await new GatewayClient(server, new AbortController().signal).models();
  if (json) console.log(JSON.stringify(models, undefined, 2));
  else console.log(models.length === 0 ? "No worker has reported a model yet." : table(COLUMNS, models));
}

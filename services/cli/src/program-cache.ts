import type { Command } from "commander";
import { cacheStats, purgeCache } from "./commands/cache.ts";
import { examples } from "./examples.ts";
import { keyOption, urlOption } from "./program-tenants.ts";

/** `atelier cache`. */
export function addCache(program: Command, { defaultUrl }: { readonly defaultUrl: string }): void {
  const cache = program.command("cache").description("results that a running system keeps · 缓存");
  const command = (usage: string, description: string) =>
    cache
      .command(usage)
      .description(description)
      .addOption(urlOption().default(defaultUrl))
      .addOption(keyOption())
      .option("--json", "print it as JSON", false);

  command("stats", "how much is kept").action((given) => cacheStats({ server: given, json: given.json }));
  command("purge", "drop what every option that is given holds of, at every gateway")
    .option("--all", "everything that the key may purge")
    .option("--tenant <id>", "what is kept for it (default: the key's own, or any for an admin)")
    .option("--model <id>", "what it made")
    .option("--adapter <name>", "what it had a part in")
    .option("--prompt-prefix <text>", "what was asked for with a prompt that begins so")
    .addHelpText(
      "after",
      examples(["atelier cache purge --model atelier-tiny", 'atelier cache purge --prompt-prefix "国潮"']),
    )
    .action(({ all, tenant, model, adapter, promptPrefix, json, ...server }) => {
      const named = { all, tenant, model, adapter, prompt_prefix: promptPrefix as string | undefined };
      return purgeCache({ server, named, json });
    });
}

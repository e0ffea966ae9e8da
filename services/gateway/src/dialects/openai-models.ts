import { z } from "zod";
import type { ModelAliases } from "../model-aliases.ts";

export const openAiModel = z
  .object({
    id: z.string().describe("What a request names."),
    object: z.literal("model"),
    created: z.int().describe("0: models do not say when they were made."),
    owned_by: z.string(),
    root: z.string().describe("The model itself: another id where this one is another name of it."),
  })
  .meta({ id: "OpenAiModel" });

export type OpenAiModel = z.infer<typeof openAiModel>;

/** The models of `catalog`, then their other names. */
export function openAiModels(
  catalog: readonly { readonly id: string }[],
  aliases: Pick<ModelAliases, "namesIn">,
): OpenAiModel[] {
  const names = [...catalog.map(({ id }) => ({ name: id, model: id })), ...aliases.namesIn(catalog)];
  return names.map(({ name, model }) => ({ id: name, object: "model", created: 0, owned_by: "atelier", root: model }));
}

import { applyWeights, PromptTokenizer, parsePrompt } from "./prompt/index.ts";
import type { PromptReader } from "./stages/text-encode.ts";

/** The reader of a bundle's prompts. @throws ServingError INVALID_BUNDLE naming the tokenizer file at fault. */
export async function openPromptReader(tokenizerDir: string): Promise<PromptReader> {
  const tokenizer = await PromptTokenizer.load(tokenizerDir);
  const chunks = (prompt: string, field: string) =>
    tokenizer.tokenize(parsePrompt(prompt, { field }), { field }).chunks;
  return { chunks, emptyChunk: chunks("", "prompt")[0]!, applyWeights };
}

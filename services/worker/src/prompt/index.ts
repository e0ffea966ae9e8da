/** From the text of a prompt to what the text encoder takes. No sessions here: the stage owns those. */
export { parsePrompt, WEIGHT_MAX, type WeightedText } from "./parse-prompt.ts";
export { CHUNK_TOKENS, CHUNKS_MAX, type PromptChunk, PromptTokenizer, type PromptTokens } from "./tokenizer.ts";
export { applyWeights } from "./weights.ts";

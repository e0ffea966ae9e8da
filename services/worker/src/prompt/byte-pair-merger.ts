import * as tokenizers from "@huggingface/tokenizers";
import type { TokenizerFiles } from "./tokenizer-files.ts";

/** Cuts a piece of text, given as byte characters, into tokens of the vocabulary. */
export interface BytePairMerger {
  encode(pieces: readonly string[]): string[];
}

/**
 * The package's own declarations import each other without file extensions, which strict ECMAScript resolution does
 * not follow, so what we use of it is declared here.
 */
const { BPE } = tokenizers as unknown as {
  BPE: new (config: {
    readonly type: "BPE";
    readonly vocab: Readonly<Record<string, number>>;
    readonly merges: readonly (readonly [string, string])[];
    readonly unk_token: string;
    readonly end_of_word_suffix: string;
  }) => BytePairMerger;
};

export function bytePairMerger({ vocabulary, merges, special }: TokenizerFiles): BytePairMerger {
  return new BPE({ type: "BPE", vocab: vocabulary, merges, unk_token: special.unk, end_of_word_suffix: "</w>" });
}

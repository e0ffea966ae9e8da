import { readFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { ServingError } from "@atelier/core";
import { z } from "zod";

/** What a CLIP tokenizer's folder says: enough to make the same ids that transformers makes. */
export interface TokenizerFiles {
  readonly vocabulary: Readonly<Record<string, number>>;
  /** In order of rank. */
  readonly merges: readonly (readonly [string, string])[];
  readonly special: { readonly bos: string; readonly eos: string; readonly unk: string; readonly pad: string };
  /** Texts that are one token wherever they stand, such as "<|endoftext|>". */
  readonly added: readonly AddedToken[];
}

export interface AddedToken {
  readonly content: string;
  readonly id: number;
  /** Looked for after the text was normalized, not before. */
  readonly normalized: boolean;
}

const vocabulary = z.record(
  z.string(),
  z
    .int()
    .min(0)
    .max(2 ** 31 - 1),
);
const tokenizerJson = z.object({
  model: z.object({
    type: z.literal("BPE").default("BPE"),
    vocab: vocabulary,
    // Pairs, or lines of two tokens with a space between: both are written.
    merges: z.array(z.union([z.tuple([z.string(), z.string()]), z.string()])),
    end_of_word_suffix: z.literal("</w>", "is what marks the end of a word in a CLIP tokenizer"),
  }),
  added_tokens: z
    .array(z.object({ content: z.string().min(1), id: z.int().min(0), normalized: z.boolean().default(false) }))
    .default([]),
});

const namedToken = z.union([
  z.string().transform((content) => ({ content, normalized: false })),
  z.object({ content: z.string(), normalized: z.boolean().default(false) }),
]);

const specialTokens = z.object({
  bos_token: namedToken.optional(),
  eos_token: namedToken.optional(),
  unk_token: namedToken.optional(),
  pad_token: namedToken.optional(),
});

const tokenizerConfig = specialTokens.extend({
  tokenizer_class: z.enum(["CLIPTokenizer", "CLIPTokenizerFast"]).optional(),
  added_tokens_decoder: z
    .record(z.string(), z.object({ content: z.string().min(1), normalized: z.boolean().default(false) }))
    .optional(),
});

const START = { content: "<|startoftext|>", normalized: false };
const END = { content: "<|endoftext|>", normalized: false };

/**
 * Reads `tokenizer.json`, or `vocab.json` and `merges.txt` where that is absent (Stable Diffusion 1 and 2 have only
 * these), and who is who among the special tokens. Precedence among the files is that of transformers 5: an
 * `added_tokens_decoder` in `tokenizer_config.json` decides; without one, `special_tokens_map.json` overrides.
 *
 * @throws ServingError INVALID_BUNDLE naming the file and what is wrong with it.
 */
export async function readTokenizerFiles(dir: string): Promise<TokenizerFiles> {
  const config = (await readJson(join(dir, "tokenizer_config.json"), tokenizerConfig)) ?? {};
  const map = (await readJson(join(dir, "special_tokens_map.json"), specialTokens)) ?? {};
  const whole = await readJson(join(dir, "tokenizer.json"), tokenizerJson);
  const { model, added_tokens } = whole ?? (await readLegacy(dir));
  const merges = pairs(model.merges, join(dir, whole === undefined ? "merges.txt" : "tokenizer.json"));

  const decoder = Object.entries(config.added_tokens_decoder ?? {});
  const listed = decoder.length > 0 ? decoder.map(([id, token]) => ({ ...token, id: Number(id) })) : added_tokens;
  const overridden = config.added_tokens_decoder === undefined;
  const named = overridden ? { ...config, ...map } : config;
  const special = {
    bos: named.bos_token ?? START,
    eos: named.eos_token ?? END,
    unk: named.unk_token ?? END,
    pad: named.pad_token ?? END,
  };
  for (const { content } of Object.values(special)) {
    const known = Object.hasOwn(model.vocab, content) || listed.some((token) => token.content === content);
    const file = overridden && Object.keys(map).length > 0 ? "special_tokens_map.json" : "tokenizer_config.json";
    if (!known) throw invalid(join(dir, file), `its special token "${content}" has no id`);
  }
  const added = new Map(
    Object.values(special).map(({ content, normalized }) => [
      content,
      { content, id: model.vocab[content]!, normalized },
    ]),
  );
  for (const token of listed) added.set(token.content, token);
  return {
    vocabulary: model.vocab,
    merges,
    special: {
      bos: special.bos.content,
      eos: special.eos.content,
      unk: special.unk.content,
      pad: special.pad.content,
    },
    added: [...added.values()],
  };
}

async function readLegacy(dir: string): Promise<z.output<typeof tokenizerJson>> {
  const vocab = await readJson(join(dir, "vocab.json"), vocabulary);
  const text = await readText(join(dir, "merges.txt"));
  if (vocab === undefined || text === undefined) {
    throw invalid(join(dir, "tokenizer.json"), "is missing, and there are no vocab.json and merges.txt in its place");
  }
  const merges = text.split(/\r?\n/).filter((line) => line !== "" && !line.startsWith("#version"));
  return { model: { type: "BPE", vocab, merges, end_of_word_suffix: "</w>" }, added_tokens: [] };
}

function pairs(merges: readonly (string | readonly [string, string])[], path: string): [string, string][] {
  return merges.map((merge) => {
    const [first, second, ...rest] = typeof merge === "string" ? merge.split(" ") : merge;
    if (first && second && rest.length === 0) return [first, second];
    throw invalid(path, `its merge ${JSON.stringify(merge).slice(0, 80)} is not two tokens`);
  });
}

/** Undefined where there is no such file. */
async function readJson<Schema extends z.ZodType>(path: string, schema: Schema): Promise<z.output<Schema> | undefined> {
  const text = await readText(path);
  if (text === undefined) return undefined;
  const parsed = schema.safeParse(parseJson(text, path));
  if (!parsed.success) throw invalid(path, complaints(parsed.error));
  return parsed.data;
}

function parseJson(text: string, path: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw invalid(path, `is not JSON: ${(cause as Error).message}`, cause);
  }
}

async function readText(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw invalid(path, `cannot be read: ${(cause as Error).message}`, cause);
  }
}

/** The first few of what may be a complaint for each of 49,000 entries. */
function complaints(error: z.ZodError): string {
  const lines = error.issues.slice(0, 3).map(({ path, message }) => `${path.join(".") || "it"}: ${message}`);
  const more = error.issues.length - lines.length;
  return `${lines.join("; ")}${more > 0 ? `; and ${more} more` : ""}`;
}

/** A bundle may have two tokenizers: a file is named with its folder. */
function invalid(path: string, reason: string, cause?: unknown): ServingError {
  return new ServingError("INVALID_BUNDLE", `${basename(dirname(path))}/${basename(path)}: ${reason}`, { cause });
}

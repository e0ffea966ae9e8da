import { access } from "node:fs/promises";
import { join } from "node:path";
import { ServingError } from "@atelier/core";
import { PromptTokenizer } from "../prompt/index.ts";
import type { BundleFiles } from "./bundle-files.ts";
import { MANIFEST_FILE } from "./manifest.ts";
import type { BundleProblems } from "./problems.ts";

/** Either of these is a CLIP tokenizer. */
const COMPLETE = [["tokenizer/tokenizer.json"], ["tokenizer/vocab.json", "tokenizer/merges.txt"]] as const;

/** Every file that has a say in the ids, so none of them may be there without its digest. */
const ALL = [...COMPLETE.flat(), "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json"] as const;

/** Reads the tokenizer for good measure, and holds its ids against the rows of the text encoder's embedding. */
export async function checkTokenizer(
  files: BundleFiles,
  vocabularySize: number | undefined,
  problems: BundleProblems,
): Promise<void> {
  const before = problems.count;
  for (const file of ALL) {
    if (files.names(file) || !(await exists(join(files.root, file)))) continue;
    problems.add(file, `is there, would change the tokens, and ${MANIFEST_FILE} does not list it among its parts`);
  }
  if (!COMPLETE.some((group) => group.every((file) => files.names(file)))) {
    const names = COMPLETE.map((group) => group.join(" and ")).join(", or ");
    problems.add("tokenizer", `${MANIFEST_FILE} has to list ${names} among its parts`);
  }
  if (problems.count > before || ALL.some((file) => files.names(file) && !files.has(file))) return;

  try {
    const { idMax } = await PromptTokenizer.load(join(files.root, "tokenizer"));
    if (vocabularySize === undefined || idMax < vocabularySize) return;
    problems.add("tokenizer", `has ids up to ${idMax}, the text encoder a vocabulary of ${vocabularySize}`);
  } catch (error) {
    if (!(error instanceof ServingError)) throw error;
    problems.add("tokenizer", error.detail.replace(/^tokenizer\//, ""));
  }
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}

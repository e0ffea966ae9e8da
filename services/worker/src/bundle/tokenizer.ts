import { access } from "node:fs/promises";
import { ServingError } from "@atelier/core";
import { PromptTokenizer } from "../prompt/index.ts";
import type { BundleFiles } from "./bundle-files.ts";
import { MANIFEST_FILE } from "./manifest.ts";
import type { BundleProblems } from "./problems.ts";

/** Either of these is a CLIP tokenizer. */
const COMPLETE = [["tokenizer.json"], ["vocab.json", "merges.txt"]] as const;

/** Every file that has a say in the ids, so none of them may be there without its digest. */
const ALL = [...COMPLETE.flat(), "tokenizer_config.json", "special_tokens_map.json"] as const;

/** Reads a tokenizer for good measure, and holds its ids against the rows of its text encoder's embedding. */
export async function checkTokenizer(
  files: BundleFiles,
  { folder, vocabularySize }: { readonly folder: string; readonly vocabularySize: number | undefined },
  problems: BundleProblems,
): Promise<void> {
  const before = problems.count;
  const inFolder = (name: string) => `${folder}/${name}`;
  for (const file of ALL.map(inFolder)) {
    if (files.names(file) || !(await exists(files.pathOf(file)))) continue;
    problems.add(file, `is there, would change the tokens, and ${MANIFEST_FILE} does not list it among its parts`);
  }
  if (!COMPLETE.some((group) => group.every((name) => files.names(inFolder(name))))) {
    const names = COMPLETE.map((group) => group.map(inFolder).join(" and ")).join(", or ");
    problems.add(folder, `${MANIFEST_FILE} has to list ${names} among its parts`);
  }
  if (problems.count > before || ALL.map(inFolder).some((file) => files.names(file) && !files.has(file))) return;

  try {
    const { idMax } = await PromptTokenizer.load(files.pathOf(folder));
    if (vocabularySize === undefined || idMax < vocabularySize) return;
    problems.add(folder, `has ids up to ${idMax}, the text encoder a vocabulary of ${vocabularySize}`);
  } catch (error) {
    if (!(error instanceof ServingError)) throw error;
    problems.add(folder, error.detail.slice(`${folder}/`.length));
  }
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}

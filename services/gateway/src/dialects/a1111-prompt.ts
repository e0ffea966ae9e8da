import type { AdapterUse } from "../image-request.ts";
import { refused } from "./a1111-fields.ts";

/** As the native API allows. */
const LORAS_MAX = 8;
const WEIGHT_MAX = 2;
const NAME_MAX = 128;

/** `<kind:arguments>`, as AUTOMATIC1111's web UI reads it (modules/extra_networks.py). */
const TAG = /<(\w+):([^<>]+)>/g;

/**
 * The prompt without its `<lora:name:weight>` tags, and the adapters that those name. The weight is 1 when left out.
 *
 * @throws ServingError INVALID_REQUEST for other tags, weights that are none, and more adapters than act together.
 */
export function adaptersInPrompt(prompt: string): { prompt: string; adapters: AdapterUse[] } {
  const adapters: AdapterUse[] = [];
  const rest = prompt.replaceAll(TAG, (tag, kind: string, said: string) => {
    if (kind !== "lora")
      throw refused("prompt", `has ${shown(tag)}; of such tags only <lora:name:weight> is served here`);
    adapters.push(adapterOf(tag, said.split(":")));
    return "";
  });
  if (adapters.length > LORAS_MAX) {
    throw refused("prompt", `names ${adapters.length} adapters; at most ${LORAS_MAX} act together`);
  }
  return { prompt: rest, adapters };
}

/** What the web UI reads in prompts beside weights, which here would be drawn as words (modules/prompt_parser.py). */
const UNSERVED: readonly { readonly what: string; readonly pattern: RegExp; readonly fields: readonly string[] }[] = [
  { what: "BREAK", pattern: /\bBREAK\b/, fields: ["prompt", "negative_prompt"] },
  { what: "AND between prompts", pattern: /\bAND\b/, fields: ["prompt"] },
  { what: "[from:to:when]", pattern: /(?<!\\)\[[^[\]]*:\s*\d[\d.]*\s*\]/, fields: ["prompt", "negative_prompt"] },
  { what: "[one|other]", pattern: /(?<!\\)\[[^[\]]*\|[^[\]]*\]/, fields: ["prompt", "negative_prompt"] },
];

/** @throws ServingError INVALID_REQUEST naming the field and the syntax that is not served. */
export function refuseUnservedSyntax(field: "prompt" | "negative_prompt", text: string): void {
  const found = UNSERVED.find(({ pattern, fields }) => fields.includes(field) && pattern.test(text));
  if (found !== undefined) throw refused(field, `has ${found.what}, which is not served here`);
}

function adapterOf(tag: string, [name = "", weight = "1", ...more]: string[]): AdapterUse {
  if (more.length > 0) throw refused("prompt", `has ${shown(tag)}; an adapter has one weight here`);
  if (name === "" || name.length > NAME_MAX) {
    throw refused("prompt", `has ${shown(tag)}; an adapter's name has 1 to ${NAME_MAX} characters`);
  }
  const number = weight.trim() === "" ? Number.NaN : Number(weight);
  if (!(Math.abs(number) <= WEIGHT_MAX)) {
    throw refused("prompt", `has ${shown(tag)}; its weight must be a number from -${WEIGHT_MAX} to ${WEIGHT_MAX}`);
  }
  return { name, weight: number };
}

const shown = (tag: string) => JSON.stringify(tag.slice(0, 60));

import { sha256 } from "@atelier/core";

/** What the logs may hold of what callers ask for: nothing, enough to recognize the same again, or the words. */
export const LOG_PROMPTS = ["never", "digest", "full"] as const;
export type LogPrompts = (typeof LOG_PROMPTS)[number];

const TEXT = String.raw`"((?:[^"\\]|\\.)*)"`;
/** Fields that hold prompts, however a dialect spells them. */
const PROMPT = new RegExp(String.raw`"((?:negative_?)?prompts?|texts?)":\s*${TEXT}`, "gi");
/** Fields that hold secrets, at any depth. */
const SECRET = new RegExp(
  String.raw`"([\w.-]*(?:authorization|api[-_]?key|token|secret|password|cookie))":\s*(?:${TEXT}|\[[^\]]*\])`,
  "gi",
);
/** Keys of ours, and secrets of webhooks, which name themselves; what stands behind that is what opens. */
const OUR_KEY = /\b(atk_[0-9a-z]{12}|whsec)_[\w+/-]{20,}=*/g;
const CREDENTIALS = /\b(Bearer|Basic)\s+[\w.~+/-]+=*/gi;
/** In a URL, whatever stands in its user and password. */
const URL_PASSWORD = /([a-z][\w+.-]*:\/\/)[^/\s"@]*:[^/\s"]*@/gi;

/** A line of the log as it may be kept. */
export function redact(line: string, prompts: LogPrompts): string {
  const safe = line
    .replace(SECRET, '"$1":"***"')
    .replace(OUR_KEY, "$1_***")
    .replace(CREDENTIALS, "$1 ***")
    .replace(URL_PASSWORD, "$1***@");
  if (prompts === "full") return safe;
  return safe.replace(PROMPT, (_all, name: string, text: string) => `"${name}":"${shown(text, prompts)}"`);
}

function shown(written: string, prompts: "never" | "digest"): string {
  if (prompts === "never") return "***";
  const text = JSON.parse(`"${written}"`) as string;
  return `${sha256(text)} (${text.length} characters)`;
}

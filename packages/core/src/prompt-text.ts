import { ServingError } from "./errors.ts";

/**
 * A prompt is a few sentences: the longest prompts in use are near 2 KB. In UTF-8, so that the limit is the same for
 * every script to whoever pays for the bytes; 10,000 are 3,333 Chinese characters.
 */
export const PROMPT_BYTES_MAX = 10_000;

export interface PromptTextRules {
  /** The request field that holds the text, as the caller spelt it. */
  readonly field: string;
  /** A negative prompt may say nothing. */
  readonly emptyAllowed?: boolean;
}

/**
 * Says whether `text` can be a prompt at all: some text, of bearable length, that UTF-8 can carry. What it asks for is
 * not judged here.
 *
 * @throws ServingError INVALID_REQUEST naming the field and what is wrong. The text itself is never repeated.
 */
export function checkPromptText(text: string, { field, emptyAllowed = false }: PromptTextRules): void {
  const complaint = complaintAbout(text, emptyAllowed);
  if (complaint !== undefined) throw new ServingError("INVALID_REQUEST", `${field} ${complaint}`, { field });
}

function complaintAbout(text: string, emptyAllowed: boolean): string | undefined {
  // A string of n UTF-16 units has at least n bytes in UTF-8, so a huge one is turned away before anything scans it.
  if (text.length > PROMPT_BYTES_MAX) return `has ${text.length} characters; at most ${PROMPT_BYTES_MAX} bytes fit`;
  const control = FORBIDDEN_CONTROL.exec(text);
  if (control !== null) return `holds the control character ${codePoint(control[0])} at character ${control.index}`;
  if (!text.isWellFormed()) {
    const at = LONE_SURROGATE.exec(text)!;
    return `holds half a character (a lone surrogate, ${codePoint(at[0])}) at character ${at.index}`;
  }
  const bytes = new TextEncoder().encode(text).length;
  if (bytes > PROMPT_BYTES_MAX) return `has ${bytes} bytes in UTF-8; at most ${PROMPT_BYTES_MAX} fit`;
  if (!emptyAllowed && text.trim() === "") return "is empty; say what the picture shows";
  return undefined;
}

/** The C0 controls and DEL, without tab, line feed and carriage return: text areas send those. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what it looks for.
const FORBIDDEN_CONTROL = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f]/;

const LONE_SURROGATE = /\p{Surrogate}/u;

function codePoint(character: string): string {
  return `U+${character.codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0")}`;
}

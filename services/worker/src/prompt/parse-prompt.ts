import { ServingError } from "@atelier/core";

/** A stretch of the prompt and how strongly it counts; 1 is plain text. */
export interface WeightedText {
  readonly text: string;
  readonly weight: number;
}

/** Beyond this a word drowns all others; a negative weight means nothing that an encoder understands. */
export const WEIGHT_MAX = 10;

/** What `(word)` multiplies by, and `[word]` divides by. */
const EMPHASIS = 1.1;

interface Mark {
  readonly kind: Kind;
  /** Where the bracket stands, and where the text inside it begins or ends. */
  readonly at: number;
}
type Kind = "(" | "[" | "（";

/** A pair of brackets that means a weight: what lies from `open` to `close` is multiplied. */
interface Group {
  readonly open: number;
  /** The text inside ends here: at the closing bracket, or at the colon before the number. */
  readonly textEnd: number;
  readonly close: number;
  readonly factor: number;
}

const CLOSES: ReadonlyMap<string, Kind> = new Map([
  [")", "("],
  ["]", "["],
  ["）", "（"],
]);

/** A colon and a number at the end of what a bracket holds. */
const WEIGHT_AT_END = /[:：]\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*$/;

/**
 * Reads the weights that a prompt states: `(word)` counts 1.1 times, `[word]` 1 / 1.1 times, `(word:1.3)` 1.3 times,
 * and brackets in brackets multiply. `\(`, `\)`, `\[`, `\]`, `\:` and `\\` stand for the character itself. A bracket
 * without its partner is plain text.
 *
 * Full-width brackets are ordinary punctuation in Chinese, so （红色） is plain text. They carry a weight only where
 * nothing else can be meant: a number with a decimal point, within the limits, as in （红色：1.3）.
 *
 * The stretches come in order; neighbours differ in weight, and none is empty unless the whole prompt is.
 *
 * Source: the syntax is that of AUTOMATIC1111's stable-diffusion-webui (modules/prompt_parser.py,
 * `parse_prompt_attention`). Unlike there, an unclosed bracket weighs nothing, and there is no `BREAK`.
 *
 * @throws ServingError INVALID_REQUEST naming `field` for a weight outside 0 to 10.
 */
export function parsePrompt(prompt: string, { field = "prompt" }: { field?: string } = {}): readonly WeightedText[] {
  const groups = findGroups(prompt, field);
  return stretches(prompt, groups, field);
}

/**
 * Pairs brackets up, innermost first. A closing bracket takes the nearest open one of its kind, and any others opened
 * since then are plain text, so that pairs never interleave.
 */
function findGroups(prompt: string, field: string): Group[] {
  const groups: Group[] = [];
  let open: Mark[] = [];
  for (let at = 0; at < prompt.length; at++) {
    const character = prompt[at]!;
    if (character === "\\") {
      if (isEscaped(prompt, at)) at++;
    } else if (character === "(" || character === "[" || character === "（") {
      open.push({ kind: character, at });
    } else if (CLOSES.has(character)) {
      const partner = open.findLastIndex(({ kind }) => kind === CLOSES.get(character));
      if (partner === -1) continue;
      const group = groupBetween(prompt, open[partner]!, at, field);
      if (group !== undefined) {
        groups.push(group);
        open = open.slice(0, partner);
      } else {
        open = open.toSpliced(partner, 1); // Full-width punctuation: closed, and nobody else's business.
      }
    }
  }
  return groups;
}

function groupBetween(prompt: string, { kind, at: open }: Mark, close: number, field: string): Group | undefined {
  if (kind === "[") return { open, textEnd: close, close, factor: 1 / EMPHASIS };
  const stated = statedWeight(prompt, open + 1, close);
  if (kind === "（") {
    const plain = stated === undefined || !stated.digits.includes(".") || !isWithinLimits(stated.weight);
    return plain ? undefined : { open, textEnd: stated.colon, close, factor: stated.weight };
  }
  if (stated === undefined) return { open, textEnd: close, close, factor: EMPHASIS };
  if (!isWithinLimits(stated.weight)) throw outOfRange(field, stated.digits);
  return { open, textEnd: stated.colon, close, factor: stated.weight };
}

function statedWeight(prompt: string, from: number, to: number) {
  // A number that means a weight is short; looking no further back keeps a long prompt linear.
  const start = Math.max(from, to - 40);
  const match = WEIGHT_AT_END.exec(prompt.slice(start, to));
  if (match === null) return undefined;
  const colon = start + match.index;
  if (backslashesBefore(prompt, colon) % 2 === 1) return undefined;
  return { colon, digits: match[1]!, weight: Number(match[1]) };
}

function isEscaped(prompt: string, backslashAt: number): boolean {
  return "()[]\\:（）：".includes(prompt[backslashAt + 1] ?? " ");
}

function backslashesBefore(prompt: string, at: number): number {
  let count = 0;
  while (prompt[at - 1 - count] === "\\") count++;
  return count;
}

/** Walks the prompt once with the weight in force, and starts a new stretch where it changes. */
function stretches(prompt: string, groups: readonly Group[], field: string): readonly WeightedText[] {
  const opens = new Map(groups.map((group) => [group.open, group]));
  const found: { text: string; weight: number }[] = [];
  const within: { group: Group; outerWeight: number }[] = [];
  let weight = 1;

  const emit = (text: string) => {
    const last = found.at(-1);
    if (last?.weight === weight) last.text += text;
    else found.push({ text, weight });
  };

  for (let at = 0; at < prompt.length; at++) {
    const entered = opens.get(at);
    const current = within.at(-1);
    if (entered !== undefined) {
      within.push({ group: entered, outerWeight: weight });
      weight *= entered.factor;
      if (!isWithinLimits(weight)) throw outOfRange(field, weight.toFixed(2));
    } else if (current !== undefined && at === current.group.textEnd) {
      weight = current.outerWeight;
      within.pop();
      at = current.group.close;
    } else if (prompt[at] === "\\" && isEscaped(prompt, at)) {
      at++;
      emit(prompt[at]!);
    } else {
      emit(prompt[at]!);
    }
  }
  return found.length === 0 ? [{ text: "", weight: 1 }] : found;
}

function isWithinLimits(weight: number): boolean {
  return 0 <= weight && weight <= WEIGHT_MAX;
}

function outOfRange(field: string, weight: string): ServingError {
  const message = `${field} gives a word the weight ${weight}; 0 to ${WEIGHT_MAX} is allowed (write \\: for a plain colon)`;
  return new ServingError("INVALID_REQUEST", message, { field });
}

import { ServingError, seededRandom } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { parsePrompt } from "./parse-prompt.ts";

describe("parsePrompt", () => {
  it.each([
    ["a red mug", "a red mug"],
    ["a (red) mug", "a |red*1.1| mug"],
    ["a [red] mug", "a |red/1.1| mug"],
    ["a (red:1.3) mug", "a |red*1.3| mug"],
    ["(red: 1.3 )", "red*1.3"],
    ["(red:.5)(blue:2.)(grey:0)", "red*0.5|blue*2|grey*0"],
    ["((red))", "red*1.21"],
    ["((red) mug:1.5) here", "red*1.65| mug*1.5| here"],
    ["[[red]:2]", "red/1.21|:2/1.1"], // a number weighs in round brackets only
    ["[(red)]", "red"],
    ["a (red)(blue) mug", "a |redblue*1.1| mug"],
    ["(http://shop:8)", "http://shop*8"],
    ["(a:b:1.5)", "a:b*1.5"],
    ["a () [] b", "a   b"],
    ["", ""],
    ["()", ""],
  ])("reads %j as %j", (prompt, expected) => {
    expect(drawn(prompt)).toBe(expected);
  });

  it.each([
    ["a \\(red\\) mug", "a (red) mug"],
    ["(red \\(dark\\):1.3)", "red (dark)*1.3"],
    ["(ratio 16\\:9)", "ratio 16:9*1.1"],
    ["\\[x\\] \\\\ end", "[x] \\ end"],
    ["C:\\temp \\n", "C:\\temp \\n"], // no escape of ours
    ["end\\", "end\\"],
    ["(a\\\\:1.5)", "a\\*1.5"], // the backslash is escaped, the colon is not
    ["\\（红色：1.3\\）", "（红色：1.3）"],
  ])("takes %j with its escapes as %j", (prompt, expected) => {
    expect(drawn(prompt)).toBe(expected);
  });

  it.each([
    ["a (red mug", "a (red mug"],
    ["a red) mug", "a red) mug"],
    ["((red) mug", "(|red*1.1| mug"],
    ["[red) mug", "[red) mug"],
    ["(a [b) c]", "a [b*1.1| c]"], // pairs never interleave
    [":) happy ;-(", ":) happy ;-("],
    ["(a:1.2.3)", "a:1.2.3*1.1"],
    ["(a:high)", "a:high*1.1"],
  ])("leaves brackets without a partner, and numbers that are none, as text: %j", (prompt, expected) => {
    expect(drawn(prompt)).toBe(expected);
  });

  it.each([
    ["（红色：1.3）T恤", "红色*1.3|T恤"],
    ["（红色:0.8）", "红色*0.8"],
    ["(红色：1.3)", "红色*1.3"],
    ["（国潮（红色）：1.5）", "国潮（红色）*1.5"],
    ["（（红色：1.5）T恤：1.2）", "红色*1.8|T恤*1.2"],
    ["国潮T恤（红色）", "国潮T恤（红色）"],
    ["（价格：3）", "（价格：3）"],
    ["画面（比例：16.9）", "画面（比例：16.9）"],
    ["(国潮（红色)）", "国潮（红色*1.1|）"],
    ["（红色：1.3)", "（红色：1.3)"],
  ])("takes full-width brackets for punctuation unless they plainly carry a weight: %j", (prompt, expected) => {
    expect(drawn(prompt)).toBe(expected);
  });

  it.each([
    ["(red:11)", "11"],
    ["(red:-1)", "-1"],
    ["(sale 12:30)", "30"],
    [`${"(".repeat(25)}red${")".repeat(25)}`, "10.83"],
    ["((red:5):5)", "25.00"],
  ])("refuses weights outside 0 to 10, naming the field and the weight: %j", (prompt, weight) => {
    const error = refusal(() => parsePrompt(prompt, { field: "negative_prompt" }));
    expect(error).toMatchObject({ code: "INVALID_REQUEST", field: "negative_prompt" });
    expect(error.message).toContain(`negative_prompt gives a word the weight ${weight};`);
  });

  it("takes ten thousand brackets in its stride", () => {
    const open = "(".repeat(5_000);
    expect(parsePrompt(`${open}${"]".repeat(5_000)}`)).toHaveLength(1);
    expect(parsePrompt(`${open}[`.repeat(2))).toHaveLength(1);
  });
});

describe("parsePrompt on prompts drawn at random", () => {
  const prompts = Array.from({ length: 5_000 }, (_, seed) => randomPrompt(seed));

  it("gives stretches of differing weight, all within the limits, none of them empty", () => {
    for (const prompt of prompts) {
      const stretches = parsed(prompt);
      if (stretches === undefined) continue;
      stretches.forEach(({ weight, text }, i) => {
        expect(weight, prompt).toBeGreaterThanOrEqual(0);
        expect(weight, prompt).toBeLessThanOrEqual(10);
        expect(weight, prompt).not.toBe(stretches[i + 1]?.weight);
        if (stretches.length > 1) expect(text, prompt).not.toBe("");
      });
    }
  });

  it("invents no character and changes no order: what is left out are brackets, weights and backslashes", () => {
    for (const prompt of prompts) {
      const text = parsed(prompt)
        ?.map((stretch) => stretch.text)
        .join("");
      if (text !== undefined) expect(isSubsequence(text, prompt), prompt).toBe(true);
      expect(words(text ?? words(prompt)), prompt).toBe(words(prompt));
    }
  });

  it("reads an escaped prompt as the very text, whatever it holds", () => {
    for (const prompt of prompts) {
      const escaped = prompt.replace(/[()[\]\\:（）：]/g, "\\$&");
      expect(parsePrompt(escaped), prompt).toEqual([{ text: prompt, weight: 1 }]);
    }
  });

  it("multiplies everything when the whole prompt is put in brackets", () => {
    for (const prompt of prompts) {
      // A bracket without its partner would find one in the pair put around it.
      const inner = parsed(prompt);
      if (inner === undefined || /[()[\]（）]/.test(inner.map(({ text }) => text).join("")) || prompt.endsWith("\\"))
        continue;
      if (inner.some(({ weight }) => weight * 0.5 > 10) || prompt === "") continue;
      const outer = parsePrompt(`(${prompt}:0.5)`);
      expect(
        outer.map(({ text }) => text),
        prompt,
      ).toEqual(inner.map(({ text }) => text));
      outer.forEach(({ weight }, i) => {
        expect(weight, prompt).toBeCloseTo(inner[i]!.weight * (inner[i]!.text === "" ? 1 : 0.5), 12);
      });
    }
  });

  it("really meets weights, nesting, escapes, full-width weights and refusals among them", () => {
    const all = prompts.map(parsed);
    expect(all.filter((stretches) => stretches === undefined).length).toBeGreaterThan(20);
    expect(all.filter((stretches) => (stretches?.length ?? 0) > 2).length).toBeGreaterThan(500);
    expect(prompts.filter((prompt) => /（[^（）]*：1\.5）/.test(prompt)).length).toBeGreaterThan(20);
    const plain = [1, 1.1, 1 / 1.1, 1.5];
    const nested = all.flatMap((stretches) => stretches ?? []).filter(({ weight }) => !plain.includes(weight));
    expect(nested.length).toBeGreaterThan(50);
  });
});

// Round brackets twice, so that many find partners, and partners inside partners.
const ALPHABET = [..."(())[]（）:：\\ ab红1.", "(", ")", "👗", ":1.5)", "：1.5）", ":1.5", ":12)"];

function randomPrompt(seed: number): string {
  const random = seededRandom(seed);
  const length = Math.floor(random.next() * 24);
  return Array.from({ length }, () => ALPHABET[Math.floor(random.next() * ALPHABET.length)]).join("");
}

/** Undefined where a weight was refused. */
function parsed(prompt: string) {
  try {
    return parsePrompt(prompt);
  } catch (error) {
    if (error instanceof ServingError) return undefined;
    throw error;
  }
}

/** The characters that carry meaning in any reading. */
function words(text: string): string {
  return text.replace(/[^ab红👗]/gu, "");
}

function isSubsequence(short: string, long: string): boolean {
  let at = 0;
  for (const character of long)
    if (character === String.fromCodePoint(short.codePointAt(at) ?? 0)) at += character.length;
  return at === short.length;
}

/** One stretch after another: text, then its weight as a factor unless that is 1. */
function drawn(prompt: string): string {
  return parsePrompt(prompt)
    .map(({ text, weight }) => {
      if (weight === 1) return text;
      const rounded = (value: number) => Number(value.toFixed(6));
      const divided = rounded(1 / weight);
      return weight < 1 && [1.1, 1.21].includes(divided) ? `${text}/${divided}` : `${text}*${rounded(weight)}`;
    })
    .join("|");
}

function refusal(run: () => void): ServingError {
  try {
    run();
  } catch (error) {
    if (error instanceof ServingError) return error;
    throw error;
  }
  throw new Error("nothing was refused");
}

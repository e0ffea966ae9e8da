import { describe, expect, it } from "vitest";
import { safeName, UniqueNames } from "./file-names.ts";

describe("A file's name", () => {
  it.each([
    ["SKU-1", "SKU-1"],
    ["红色 T恤（新）", "红色 T恤（新）"],
    ["../../etc/passwd", "_.._etc_passwd"],
    ["C:\\windows\\x", "C__windows_x"],
    ['a<b>c:d"e|f?g*h', "a_b_c_d_e_f_g_h"],
    ["...hidden", "hidden"],
    ["ends. . ", "ends"],
    ["CON", "_CON"],
    ["nul.txt", "_nul.txt"],
    ["COM1", "_COM1"],
    ["COM¹", "_COM¹"],
    ["console", "console"],
    ["tab\tand\nline", "tab_and_line"],
    ["left\u202eright", "left_right"],
    ["e\u0301", "\u00e9"],
    ["half \ud800", "half \ufffd"],
    ["...", ""],
    ["  ", ""],
  ])("made of %j is %j", (text, name) => {
    expect(safeName(text)).toBe(name);
  });

  it("is cut between characters where it is too long for a file system", () => {
    const name = safeName("鞋".repeat(200));
    expect(name).toBe("鞋".repeat(60));
    expect(safeName(`${"👟".repeat(100)}`)).toBe("👟".repeat(45));
  });

  it("is taken once, whatever the case", () => {
    const names = new UniqueNames();
    expect([names.take("A", 0), names.take("a", 1), names.take("A-2", 2), names.take("A", 3)]).toEqual([
      "A",
      "a-2",
      "A-2-2",
      "A-3",
    ]);
  });

  it("is unique where thousands of rows have the same, and where hundred thousands have others", () => {
    const names = new UniqueNames();
    const taken = new Set<string>();
    for (let i = 0; i < 5_000; i++) taken.add(names.take("same", i).toLowerCase());
    for (let i = 0; i < 200_000; i++) taken.add(names.take(`SKU-${i}`, 5_000 + i).toLowerCase());
    expect(taken.size).toBe(205_000);
    // Hardly one of them had to give way to a number that only looked the same.
    expect([...taken].filter((name) => /^sku-\d+-/.test(name)).length).toBeLessThan(3);
  });
});

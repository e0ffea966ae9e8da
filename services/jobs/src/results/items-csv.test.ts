import { describe, expect, it } from "vitest";
import { csvCell } from "./items-csv.ts";

describe("a cell of a table for spreadsheets", () => {
  it.each([
    ["=1+1", "'=1+1"],
    ["+49 30 1234", "'+49 30 1234"],
    ["-2", "'-2"],
    ["@SUM(A1)", "'@SUM(A1)"],
    ["\t=1", "'\t=1"],
    ["\r=1", `"'\r=1"`],
    ["＝1+1", "'＝1+1"],
    ['=HYPERLINK("http://x","y")', `"'=HYPERLINK(""http://x"",""y"")"`],
    ["a = b", "a = b"],
    ['a "red" mug, large', '"a ""red"" mug, large"'],
    ["two\nlines", '"two\nlines"'],
    ["杯子", "杯子"],
    [null, ""],
    [undefined, ""],
    [-2.5, "-2.5"],
  ])("%j is written %j", (value, cell) => {
    expect(csvCell(value)).toBe(cell);
  });
});

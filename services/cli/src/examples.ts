/** The end of a command's help. */
export function examples(lines: readonly string[]): string {
  return `\nExamples · 示例:\n${lines.map((line) => `  ${line}`).join("\n")}`;
}

import { styleText } from "node:util";

/** Bold on a terminal that shows it; plain in a pipe, and where NO_COLOR is set. Never the only sign of anything. */
export function bold(text: string): string {
  return styleText("bold", text, { stream: process.stdout });
}

import { Writable } from "node:stream";
import type { WriteStream } from "node:tty";
import { stripVTControlCharacters } from "node:util";
import { describe, expect, it } from "vitest";
import { Progress } from "./progress.ts";

describe("Progress", () => {
  it("shows on a terminal a bar with stage and steps in words, and clears it in the end", async () => {
    const { stream, written } = capture({ isTTY: true });
    const progress = new Progress(stream);
    progress.begin("drawing");
    progress.steps({ label: "denoising", done: 12, total: 37 });
    expect(stripVTControlCharacters(written())).toMatch(/drawing 0.0 s\s*denoising 12\/37 steps █+░+ 0s$/);
    progress.steps({ label: "decoding the image", done: 37, total: 37 });
    progress.end();
    expect(stripVTControlCharacters(written())).toMatch(/decoding the image 37\/37 steps █+ 0s/);
    // The cursor is shown again; it goes to the start of the line, which is erased.
    expect(written()).toContain("\x1b[?25h");
    expect(written().slice(-8)).toBe("\x1b[1G\x1b[2K");

    const length = written().length;
    await new Promise((resolve) => setTimeout(resolve, 300));
    expect(written()).toHaveLength(length);
  });

  it("writes no colour: nothing is said by it, and NO_COLOR has nothing to turn off", () => {
    const { stream, written } = capture({ isTTY: true });
    const progress = new Progress(stream);
    progress.steps({ label: "denoising", done: 1, total: 2 });
    progress.end();
    // Select Graphic Rendition, ESC [ ... m, is how a terminal is told of colours.
    const sequences = written().split("\x1b[").slice(1);
    expect(sequences.filter((sequence) => /^[\d;]*m/.test(sequence))).toEqual([]);
  });

  it("says nothing of steps in a pipe, unless it is to be verbose", () => {
    for (const [verbose, text] of [
      [false, ""],
      [true, "denoising 12/37 steps\n"],
    ] as const) {
      const { stream, written } = capture({ isTTY: false });
      const progress = new Progress(stream, { verbose });
      progress.begin("drawing");
      progress.steps({ label: "denoising", done: 12, total: 37 });
      progress.end();
      expect(written()).toBe(text);
    }
  });
});

/** A stream that stands for a terminal of 100 columns, or for a pipe. */
function capture({ isTTY }: { isTTY: boolean }) {
  let text = "";
  const stream = new Writable({
    write: (chunk, _encoding, done) => {
      text += String(chunk);
      done();
    },
  });
  return { stream: Object.assign(stream, { isTTY, columns: 100 }) as unknown as WriteStream, written: () => text };
}

import type { RgbImage } from "../../stages/image-file.ts";
import { GPU_NAMES, type SimulatedGpu } from "./gpu-figures.ts";

/** Something with pixels that can be written. `level` is 0, black, or 1, white. */
export interface Canvas {
  readonly width: number;
  readonly height: number;
  set(x: number, y: number, level: 0 | 1): void;
}

/** Marks a picture of bytes, [height, width, 3], in place. */
export function markImage({ data, width, height }: RgbImage, gpu: SimulatedGpu): void {
  const set = (x: number, y: number, level: 0 | 1) => {
    data.fill(255 * level, 3 * (y * width + x), 3 * (y * width + x) + 3);
  };
  mark({ width, height, set }, GPU_NAMES[gpu]);
}

/**
 * Writes SIMULATED and `name` across a picture: white on a black band over its whole width, as large as fits, with
 * stripes along the upper and the lower edge, so that a small or cropped copy still shows that no model ran.
 * The letters are our own: a machine may have no fonts.
 */
export function mark(canvas: Canvas, name: string): void {
  stripes(canvas);
  const lines = ["SIMULATED", name.toUpperCase()];
  const columns = Math.max(...lines.map(columnsOf));
  const scale = Math.max(1, Math.floor((canvas.width * 0.9) / columns));
  const lineHeight = (GLYPH_ROWS + 2) * scale;
  const bandHeight = Math.min(canvas.height, lines.length * lineHeight + 2 * scale);
  const top = Math.floor((canvas.height - bandHeight) / 2);
  fill(canvas, { top, height: bandHeight, level: 0 });
  lines.forEach((line, i) => {
    write(canvas, line, { top: top + 2 * scale + i * lineHeight, scale });
  });
}

const GLYPH_ROWS = 7;
const GLYPH_COLUMNS = 5;

/** The letters of the words that are written, 5 x 7, a row a number, the leftmost column the highest bit. */
const GLYPHS: Readonly<Record<string, readonly number[]>> = {
  " ": [0, 0, 0, 0, 0, 0, 0],
  "0": [0b01110, 0b10001, 0b10011, 0b10101, 0b11001, 0b10001, 0b01110],
  "1": [0b00100, 0b01100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110],
  "4": [0b00010, 0b00110, 0b01010, 0b10010, 0b11111, 0b00010, 0b00010],
  "9": [0b01110, 0b10001, 0b10001, 0b01111, 0b00001, 0b00010, 0b01100],
  A: [0b01110, 0b10001, 0b10001, 0b11111, 0b10001, 0b10001, 0b10001],
  D: [0b11110, 0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b11110],
  E: [0b11111, 0b10000, 0b10000, 0b11110, 0b10000, 0b10000, 0b11111],
  H: [0b10001, 0b10001, 0b10001, 0b11111, 0b10001, 0b10001, 0b10001],
  I: [0b01110, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110],
  L: [0b10000, 0b10000, 0b10000, 0b10000, 0b10000, 0b10000, 0b11111],
  M: [0b10001, 0b11011, 0b10101, 0b10101, 0b10001, 0b10001, 0b10001],
  R: [0b11110, 0b10001, 0b10001, 0b11110, 0b10100, 0b10010, 0b10001],
  S: [0b01111, 0b10000, 0b10000, 0b01110, 0b00001, 0b00001, 0b11110],
  T: [0b11111, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100],
  U: [0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b01110],
  X: [0b10001, 0b10001, 0b01010, 0b00100, 0b01010, 0b10001, 0b10001],
};

function columnsOf(line: string): number {
  return line.length * (GLYPH_COLUMNS + 1) - 1;
}

function write(canvas: Canvas, line: string, { top, scale }: { top: number; scale: number }): void {
  const left = Math.floor((canvas.width - columnsOf(line) * scale) / 2);
  [...line].forEach((letter, place) => {
    GLYPHS[letter]!.forEach((bits, row) => {
      for (let column = 0; column < GLYPH_COLUMNS; column++) {
        if ((bits & (1 << (GLYPH_COLUMNS - 1 - column))) === 0) continue;
        const x = left + (place * (GLYPH_COLUMNS + 1) + column) * scale;
        square(canvas, { x, y: top + row * scale, side: scale });
      }
    });
  });
}

function square(canvas: Canvas, { x, y, side }: { x: number; y: number; side: number }): void {
  for (let dy = 0; dy < side; dy++) {
    for (let dx = 0; dx < side; dx++) {
      if (x + dx >= 0 && x + dx < canvas.width && y + dy >= 0 && y + dy < canvas.height) canvas.set(x + dx, y + dy, 1);
    }
  }
}

function fill(canvas: Canvas, { top, height, level }: { top: number; height: number; level: 0 | 1 }): void {
  for (let y = top; y < top + height; y++) for (let x = 0; x < canvas.width; x++) canvas.set(x, y, level);
}

function stripes(canvas: Canvas): void {
  const thickness = Math.max(1, Math.floor(canvas.height / 16));
  for (let y = 0; y < thickness; y++) {
    for (let x = 0; x < canvas.width; x++) {
      const level = Math.floor((x + y) / thickness) % 2 === 0 ? 1 : 0;
      canvas.set(x, y, level);
      canvas.set(x, canvas.height - 1 - y, level);
    }
  }
}

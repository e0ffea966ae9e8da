import { checkPromptText, isErrorCode, ServingError } from "@atelier/core";
import type { ItemSpec } from "../job.ts";
import type { ShapeDraft } from "../ports.ts";
import { columnName } from "./columns.ts";
import { EXTENSIONS, safeName, UniqueNames } from "./file-names.ts";
import { itemSeed } from "./item-seed.ts";
import type { NamedPreset, TemplateOptions } from "./options.ts";
import { checkPlaceholders, type Placeholders, parsePlaceholders } from "./placeholders.ts";
import { type RowFields, readRowFields } from "./row-fields.ts";
import { mergedDraft, type ShapeBook } from "./shape-book.ts";
import { type BadRow, type RowBlock, RowProblem, type SheetRow, shown } from "./sheet.ts";

export interface ExpansionOptions {
  readonly template: TemplateOptions;
  /** Of the template, looked up; none: rows are as they are. */
  readonly presets: readonly NamedPreset[];
  readonly onError: "reject" | "skip";
  readonly seed: number;
  readonly itemsMax: number;
  readonly shapes: ShapeBook;
  /** What a row's line is called: "line", or "row" where the sheet has no lines. */
  readonly lineName: "line" | "row";
}

/** A row that says all it has to. */
interface GoodRow {
  readonly line: number;
  readonly number: number;
  readonly cells: ReadonlyMap<string, string>;
  readonly fields: RowFields;
  /** For each preset. */
  readonly drafts: readonly { readonly key: string; readonly draft: ShapeDraft }[];
}

const SKIPPED_TOLD_MAX = 100;
const MESSAGE_CHARS_MAX = 500;
/** Items that are handed on in one go. */
const BATCH_ITEMS = 1_000;

/**
 * Rows times presets times variants, in this order, as items with everything decided. What it counts is right once its
 * items were all taken.
 */
export class Expansion {
  readonly #options: ExpansionOptions;
  readonly #presets: readonly (NamedPreset | undefined)[];
  readonly #variants: number;
  readonly #prompt: Placeholders | undefined;
  readonly #negativePrompt: Placeholders | undefined;
  readonly #fileName: Placeholders | undefined;
  /** What pictures are like where a row says nothing, for each preset. */
  readonly #plain: readonly { readonly key: string; readonly draft: ShapeDraft }[];
  readonly #names = new UniqueNames();
  #columns: ReadonlySet<string> | undefined;
  readonly #emptyCells = new Map<string, number>();
  /** Rows read, bad ones among them. */
  rows = 0;
  items = 0;
  predictedDeviceMs = 0;
  readonly skipped: { line: number; message: string }[] = [];
  skippedCount = 0;

  constructor(options: ExpansionOptions) {
    const { template, presets } = options;
    this.#options = options;
    this.#presets = presets.length === 0 ? [undefined] : presets;
    this.#variants = template.variants ?? 1;
    const parsed = (text: string | undefined, field: string) =>
      text === undefined ? undefined : parsePlaceholders(text, field);
    this.#prompt = parsed(template.prompt, "template.prompt");
    this.#negativePrompt = parsed(template.negative_prompt, "template.negative_prompt");
    this.#fileName = parsed(template.file_name, "template.file_name");
    this.#plain = this.#presets.map((preset) => mergedDraft(template.defaults, preset?.defaults));
  }

  get seed(): number {
    return this.#options.seed;
  }

  /** What may not be meant. */
  get notes(): readonly string[] {
    const notes: string[] = [];
    for (const [column, count] of this.#emptyCells) {
      notes.push(`${count} ${count === 1 ? "row has" : "rows have"} an empty ${column}, which the template uses`);
    }
    if (this.#prompt?.columns.length === 0 && this.rows > 1) {
      notes.push("template.prompt has no placeholder: rows without a prompt of their own have the same one");
    }
    return notes;
  }

  /**
   * @throws ServingError INVALID_REQUEST: a bad row where they are not skipped, a placeholder that is no column, a setting
   * that the model does not have; PAYLOAD_TOO_LARGE: too many items.
   */
  async *of(blocks: AsyncIterable<RowBlock>): AsyncIterable<readonly ItemSpec[]> {
    let batch: ItemSpec[] = [];
    for await (const block of blocks) {
      const read = block.map((row) => this.#read(row));
      await this.#completeShapes(read);
      const checked = read.map((row) => ("problem" in row ? row : this.#checked(row)));
      this.#settleBad(checked);
      for (const row of checked) {
        if ("problem" in row) continue;
        for (const item of this.#itemsOf(row)) {
          batch.push(item);
          if (batch.length < BATCH_ITEMS) continue;
          yield batch;
          batch = [];
        }
      }
    }
    if (batch.length > 0) yield batch;
  }

  #read(row: SheetRow | BadRow): GoodRow | BadRow {
    const number = ++this.rows;
    if ("problem" in row) return row;
    const { line, cells } = row;
    if (this.#columns === undefined) this.#meetColumns(cells);
    try {
      for (const [column, cell] of cells) if (cell.includes("\0")) throw holdsNul(column);
      const fields = readRowFields(row);
      const own = Object.keys(fields.draft).length > 0;
      const { template } = this.#options;
      const drafts = own
        ? this.#presets.map((preset) => mergedDraft(template.defaults, preset?.defaults, fields.draft))
        : this.#plain;
      return { line, number, cells, fields, drafts };
    } catch (error) {
      return { line, problem: problemOf(error) };
    }
  }

  /** The first row that can be read says what columns there are. @throws ServingError naming what is none. */
  #meetColumns(cells: ReadonlyMap<string, string>): void {
    const known = new Set(cells.keys());
    this.#columns = known;
    if (this.#prompt !== undefined) checkPlaceholders(this.#prompt, { field: "template.prompt", known });
    if (this.#negativePrompt !== undefined) {
      checkPlaceholders(this.#negativePrompt, { field: "template.negative_prompt", known });
    }
    if (this.#fileName !== undefined) {
      checkPlaceholders(this.#fileName, { field: "template.file_name", known: [...known, ...FILE_NAME_WORDS] });
    }
    if (this.#prompt === undefined && !known.has("prompt")) {
      const message = `there is neither template.prompt nor a column "prompt"; the columns are ${[...known].map((name) => shown(name)).join(", ")}`;
      throw new ServingError("INVALID_REQUEST", message, { field: "template.prompt" });
    }
  }

  async #completeShapes(rows: readonly (GoodRow | BadRow)[]): Promise<void> {
    const { shapes } = this.#options;
    const unknown = new Map<string, ShapeDraft>();
    for (const row of rows) {
      if ("problem" in row) continue;
      for (const { key, draft } of row.drafts) {
        if (shapes.of(key) === undefined) unknown.set(key, draft);
      }
    }
    if (unknown.size > 0) await shapes.complete(unknown);
  }

  /** @throws ServingError where the settings themselves are refused, which no row can mend. */
  #checked(row: GoodRow): GoodRow | BadRow {
    for (const { key } of row.drafts) {
      const completed = this.#options.shapes.of(key);
      if (completed === undefined || completed.ok) continue;
      const { code, message, field } = completed;
      if (row.drafts === this.#plain) throw new ServingError(codeOf(code), message, { field: field ?? undefined });
      return { line: row.line, problem: new RowProblem(message, field ?? undefined) };
    }
    try {
      this.#checkSeed(row.fields.seed);
      for (const preset of this.#presets) {
        checkPromptText(this.#promptOf(row, preset), { field: "prompt" });
        checkPromptText(this.#negativeOf(row, preset), { field: "negative_prompt", emptyAllowed: true });
      }
      return row;
    } catch (error) {
      return { line: row.line, problem: problemOf(error) };
    }
  }

  #checkSeed(seed: number | undefined): void {
    if (seed === undefined || seed <= Number.MAX_SAFE_INTEGER - (this.#variants - 1)) return;
    const message = `seed is ${seed}; with ${this.#variants} variants the last one's would be above ${Number.MAX_SAFE_INTEGER}`;
    throw new RowProblem(message, "seed");
  }

  #settleBad(rows: readonly (GoodRow | BadRow)[]): void {
    const bad = rows.filter((row) => "problem" in row);
    const [first] = bad;
    if (first === undefined) return;
    const { lineName, onError } = this.#options;
    if (onError === "reject") {
      const more = bad.length > 1 ? `; ${bad.length - 1} more of the ${this.rows} rows read so far are bad` : "";
      const advice = 'nothing was accepted; on_error "skip" leaves bad rows out';
      const message = `${lineName} ${first.line}: ${first.problem.message}${more} (${advice})`;
      throw new ServingError("INVALID_REQUEST", message, { field: first.problem.column });
    }
    this.skippedCount += bad.length;
    for (const { line, problem } of bad) {
      if (this.skipped.length === SKIPPED_TOLD_MAX) break;
      this.skipped.push({ line, message: problem.message.slice(0, MESSAGE_CHARS_MAX) });
    }
  }

  *#itemsOf(row: GoodRow): Iterable<ItemSpec> {
    const { shapes, seed } = this.#options;
    this.#countEmpty(row);
    for (let p = 0; p < this.#presets.length; p++) {
      const preset = this.#presets[p];
      const completed = shapes.of(row.drafts[p]!.key);
      if (completed?.ok !== true) continue;
      const prompt = this.#promptOf(row, preset);
      const negativePrompt = this.#negativeOf(row, preset);
      for (let variant = 1; variant <= this.#variants; variant++) {
        const index = this.items++;
        if (this.items > this.#options.itemsMax) throw tooMany(this.#options.itemsMax);
        this.predictedDeviceMs += completed.shape.predictedDeviceMs;
        const name = this.#names.take(this.#nameOf(row, { index, preset, variant }), index);
        yield {
          index,
          row: row.number,
          variant,
          preset: preset?.name ?? null,
          sku: row.fields.sku ?? null,
          file: `${name}.${EXTENSIONS[completed.shape.format]}`,
          prompt,
          negativePrompt,
          seed: row.fields.seed === undefined ? itemSeed(seed, index) : row.fields.seed + variant - 1,
          shape: completed.place,
        };
      }
    }
  }

  /** A row's own prompt stands in the place of the template's, unless that is made of it. */
  #promptOf({ cells, fields }: GoodRow, preset: NamedPreset | undefined): string {
    const own = this.#prompt?.columns.includes("prompt") === true ? undefined : fields.prompt;
    const prompt = own ?? this.#prompt?.fill((column) => cells.get(column) ?? "") ?? "";
    if (prompt === "" || preset === undefined) return prompt;
    return (preset.prompt_prefix ?? "") + prompt + (preset.prompt_suffix ?? "");
  }

  #negativeOf({ cells, fields }: GoodRow, preset: NamedPreset | undefined): string {
    const own = this.#negativePrompt?.columns.includes("negative_prompt") === true ? undefined : fields.negativePrompt;
    const said = own ?? this.#negativePrompt?.fill((column) => cells.get(column) ?? "") ?? "";
    return [said, preset?.negative_prompt ?? ""].filter((text) => text !== "").join(", ");
  }

  #countEmpty({ cells }: GoodRow): void {
    for (const column of this.#prompt?.columns ?? []) {
      if ((cells.get(column) ?? "") !== "") continue;
      this.#emptyCells.set(column, (this.#emptyCells.get(column) ?? 0) + 1);
    }
  }

  #nameOf({ cells, fields, number }: GoodRow, { index, preset, variant }: Named): string {
    const words: Record<string, string> = {
      index: String(index),
      row: String(number),
      preset: preset?.name ?? "",
      variant: String(variant),
    };
    const named = this.#fileName?.columns ?? [];
    const said = this.#fileName?.fill((column) => cells.get(column) ?? words[column] ?? "") ?? fields.sku ?? "";
    const name = safeName(said) || `item-${String(number).padStart(6, "0")}`;
    const ofPreset = preset !== undefined && this.#presets.length > 1 && !named.includes("preset");
    const ofVariant = this.#variants > 1 && !named.includes("variant");
    return `${name}${ofPreset ? `-${preset.name}` : ""}${ofVariant ? `-v${variant}` : ""}`;
  }
}

interface Named {
  readonly index: number;
  readonly preset: NamedPreset | undefined;
  readonly variant: number;
}

/** What a file's name may have beside columns; a column of the same name goes before. */
const FILE_NAME_WORDS = ["index", "row", "preset", "variant"].map(columnName);

function problemOf(error: unknown): RowProblem {
  if (error instanceof RowProblem) return error;
  if (error instanceof ServingError) return new RowProblem(error.detail, error.field);
  throw error;
}

function holdsNul(column: string): RowProblem {
  return new RowProblem(`${column} holds the control character U+0000`, column);
}

function codeOf(code: string): ServingError["code"] {
  return isErrorCode(code) ? code : "INVALID_REQUEST";
}

function tooMany(itemsMax: number): ServingError {
  const message = `the sheet comes to more than ${itemsMax} pictures, which is all that one job may have (ATELIER_JOB_ITEMS_MAX)`;
  return new ServingError("PAYLOAD_TOO_LARGE", message, { field: "sheet" });
}

import { access, constants, readFile, rename, rm, writeFile } from "node:fs/promises";
import { dirname, extname } from "node:path";
import { CliError } from "../cli-error.ts";

const FORMATS: Record<string, string> = { ".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp" };

/**
 * The format that a file name asks for.
 * @throws CliError for an extension that is not a picture's.
 */
export function formatOf(file: string): string {
  const format = FORMATS[extname(file).toLowerCase()];
  if (format !== undefined) return format;
  throw new CliError(`${file}: name it .png, .jpg or .webp, or give --format`, { exitCode: 2 });
}

/** "tee.png" for one picture; "tee-1.png", "tee-2.png" for two. */
export function fileNames(file: string, count: number): readonly string[] {
  if (count === 1) return [file];
  const extension = extname(file);
  const stem = file.slice(0, file.length - extension.length);
  return Array.from({ length: count }, (_, i) => `${stem}-${i + 1}${extension}`);
}

/**
 * A picture file in base64, for a request. Whether it is one is the server's to say.
 * @throws CliError naming the file.
 */
export async function readInitImage(file: string): Promise<string> {
  try {
    return await readFile(file, "base64");
  } catch (error) {
    throw new CliError(`${file} cannot be read: ${(error as Error).message}`, { cause: error });
  }
}

/**
 * Looks before minutes of drawing are spent on a picture that has no place to go.
 * @throws CliError naming the file.
 */
export async function checkWritable(file: string): Promise<void> {
  const folder = dirname(file);
  try {
    await access(`${folder}/.`, constants.W_OK);
  } catch (error) {
    throw new CliError(`${file} cannot be written: ${(error as Error).message}`, { cause: error });
  }
}

/**
 * Writes beside the file and renames, so that a reader never sees half a picture, nor does a full disk leave one.
 * @throws CliError naming the file.
 */
export async function writeWhole(file: string, data: Uint8Array): Promise<void> {
  const part = `${file}.${process.pid}.part`;
  try {
    await writeFile(part, data);
    await rename(part, file);
  } catch (error) {
    await rm(part, { force: true }).catch(() => {}); // the first failure is the one to tell
    throw new CliError(`${file} cannot be written: ${(error as Error).message}`, { cause: error });
  }
}

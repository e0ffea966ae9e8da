import { readFile } from "node:fs/promises";
import { dirname } from "node:path";
import { perRowTimestep } from "@atelier/onnx";
import { InferenceSession } from "onnxruntime-node";

/** A session in the place of the one given; the same one, and why, where the graph has to stay as it is. */
export interface Reopened {
  readonly session: InferenceSession;
  readonly cannot?: string;
}

/** Rows at different steps share a run only if each brings its own timestep, and Euler's are fractions. */
export function hasTimestepPerRow({ inputMetadata }: InferenceSession): boolean {
  const timestep = inputMetadata.find(({ name }) => name === "timestep");
  if (timestep === undefined || !timestep.isTensor) return true; // No U-Net: whoever opened it will complain.
  return typeof timestep.shape[0] === "string" && (timestep.type === "float32" || timestep.type === "float16");
}

/**
 * Opens the U-Net again with its graph rewritten to take one timestep for each row; see `perRowTimestep`. Opened as it
 * is first, since exports of our own need none of this, and a graph with its weights inside is a lot to read for nothing.
 */
export async function reopenedPerRow(
  session: InferenceSession,
  path: string,
  options: InferenceSession.SessionOptions,
): Promise<Reopened> {
  const rewritten = perRowTimestep(await readFile(path));
  if ("cannot" in rewritten) return { session, cannot: rewritten.cannot };
  await session.release();
  return { session: await InferenceSession.create(rewritten.bytes, withWeightsBeside(path, options)) };
}

/** A graph that comes as bytes does not know where it lay, and so not where its external data lies. */
function withWeightsBeside(path: string, options: InferenceSession.SessionOptions): InferenceSession.SessionOptions {
  const extra = options.extra as { readonly session?: Record<string, unknown> } | undefined;
  const session = { ...extra?.session, model_external_initializers_file_folder_path: dirname(path) };
  return { ...options, extra: { ...extra, session } };
}

import { invariant } from "@atelier/core";
import { latentSize } from "@atelier/diffusion";
import { type InferenceSession, Tensor } from "onnxruntime-node";
import type { Unet, UnetBatch, UnetRow } from "../../stages/denoise.ts";
import type { Releasable } from "../device.ts";
import { asFloat32, type FloatInput, type FloatType, floatInput } from "./float-input.ts";
import { runSession } from "./session.ts";
import { floatType, tensorPort } from "./tensor-port.ts";

/** Batch shapes whose tensors are kept. A busy worker meets a few; each holds a few MB. */
const BUFFERS_MAX = 12;

/**
 * A U-Net in a diffusers or optimum export. Exports differ in the type and the shape of the timestep (one for each row,
 * or one for the whole run) and in precision; both are read from the session.
 */
export class OnnxUnet implements Unet, Releasable {
  readonly #session: InferenceSession;
  readonly #io: UnetPorts;
  readonly #buffers = new Map<string, Buffers>();

  /** @throws ServingError INVALID_BUNDLE naming `path` when the graph is no such U-Net. */
  constructor(session: InferenceSession, path: string) {
    this.#session = session;
    this.#io = unetPorts(session, path);
  }

  async predictNoise(batch: UnetBatch): Promise<readonly Float32Array[]> {
    if (this.#io.timestep.perRow) return this.#run(batch);
    // One timestep for the whole run: a run for each that occurs. The copies outlive the next run.
    const predictions = new Map<UnetRow, Float32Array>();
    for (const timestep of new Set(batch.rows.map((row) => row.timestep))) {
      const rows = batch.rows.filter((row) => row.timestep === timestep);
      const results = await this.#run({ ...batch, rows });
      rows.forEach((row, i) => {
        predictions.set(row, results[i]!.slice());
      });
    }
    return batch.rows.map((row) => predictions.get(row)!);
  }

  release(): Promise<void> {
    return this.#session.release();
  }

  async #run(batch: UnetBatch): Promise<readonly Float32Array[]> {
    const { output } = this.#io;
    const buffers = this.#buffersFor(batch);
    buffers.fill(batch.rows);
    const feeds = {
      sample: buffers.sample.tensor,
      timestep: buffers.timestep.tensor,
      encoder_hidden_states: buffers.embedding.tensor,
    };
    const size = latentSize(batch.shape);
    const written = buffers.output;
    if (written !== undefined) {
      await runSession(this.#session, feeds, { [output.name]: written.tensor });
      return batch.rows.map((_, i) => written.values.subarray(i * size, (i + 1) * size));
    }
    const results = await runSession(this.#session, feeds);
    const values = asFloat32(results[output.name] as Tensor);
    return batch.rows.map((_, i) => values.subarray(i * size, (i + 1) * size));
  }

  /** Tensors are made once for each shape and written in place: nothing is allocated at a step. */
  #buffersFor({ shape, sequenceLength, rows }: UnetBatch): Buffers {
    const width = rows[0]!.conditioning.length / sequenceLength;
    const key = `${rows.length} ${shape.channels} ${shape.height} ${shape.width} ${sequenceLength}`;
    const kept = this.#buffers.get(key);
    this.#buffers.delete(key);
    const dims = [rows.length, shape.channels, shape.height, shape.width];
    const buffers = kept ?? new Buffers(this.#io, dims, [rows.length, sequenceLength, width]);
    this.#buffers.set(key, buffers); // newest last
    if (this.#buffers.size > BUFFERS_MAX) this.#buffers.delete(this.#buffers.keys().next().value!);
    return buffers;
  }
}

/** A graph's inputs and outputs, by what they mean. `readBundle` has made sure that they are there. */
interface UnetPorts {
  readonly sample: FloatType;
  readonly embedding: FloatType;
  readonly timestep: { readonly type: string; readonly perRow: boolean; readonly scalar: boolean };
  readonly output: { readonly name: string; readonly type: FloatType };
}

function unetPorts(session: InferenceSession, path: string): UnetPorts {
  const timestep = tensorPort(session.inputMetadata, "timestep", path);
  const output = tensorPort(session.outputMetadata, session.outputNames[0], path);
  return {
    sample: floatType(tensorPort(session.inputMetadata, "sample", path), path),
    embedding: floatType(tensorPort(session.inputMetadata, "encoder_hidden_states", path), path),
    timestep: {
      type: timestep.type,
      perRow: typeof timestep.shape[0] === "string",
      scalar: timestep.shape.length === 0,
    },
    output: { name: output.name, type: floatType(output, path) },
  };
}

/** The tensors of one batch shape. */
class Buffers {
  readonly sample: FloatInput;
  readonly timestep: TimestepInput;
  readonly embedding: FloatInput;
  /** Where the prediction is written; undefined for float16, which onnxruntime-node writes to no array of ours. */
  readonly output: { readonly values: Float32Array; readonly tensor: Tensor } | undefined;
  readonly #embedded: Float32Array[] = [];

  constructor(io: UnetPorts, sampleDims: readonly number[], embeddingDims: readonly number[]) {
    this.sample = floatInput(io.sample, sampleDims);
    this.embedding = floatInput(io.embedding, embeddingDims);
    this.timestep = timestepInput(io.timestep, sampleDims[0]!);
    if (io.output.type === "float32") {
      const values = new Float32Array(this.sample.values.length);
      this.output = { values, tensor: new Tensor("float32", values, sampleDims) };
    }
  }

  /** Text embeddings are written only where another job has taken the row: they stay the same from step to step. */
  fill(rows: readonly UnetRow[]): void {
    const sampleSize = this.sample.values.length / rows.length;
    const embeddingSize = this.embedding.values.length / rows.length;
    rows.forEach((row, i) => {
      invariant(row.sample.length === sampleSize, "a row's sample has the batch's shape");
      this.sample.values.set(row.sample, i * sampleSize);
      if (this.#embedded[i] !== row.conditioning) {
        invariant(row.conditioning.length === embeddingSize, "a row's text embedding has the batch's length");
        this.embedding.values.set(row.conditioning, i * embeddingSize);
        this.#embedded[i] = row.conditioning;
      }
    });
    this.timestep.set(rows.map((row) => row.timestep));
  }
}

interface TimestepInput {
  readonly tensor: Tensor;
  set(timesteps: readonly number[]): void;
}

/** Whole-number graphs get the nearest timestep: truncating Euler's fractional ones is an error of up to 1e-2. */
function timestepInput(port: UnetPorts["timestep"], rows: number): TimestepInput {
  const count = port.perRow ? rows : 1;
  const dims = port.scalar ? [] : [count];
  if (port.type === "float32" || port.type === "float16") {
    const { values, tensor } = floatInput(port.type, dims);
    return { tensor, set: (timesteps) => values.set(timesteps.slice(0, count)) };
  }
  if (port.type === "int32") {
    const values = new Int32Array(count);
    const set = (timesteps: readonly number[]) => values.set(timesteps.slice(0, count).map(Math.round));
    return { tensor: new Tensor("int32", values, dims), set };
  }
  const values = new BigInt64Array(count);
  const set = (timesteps: readonly number[]) =>
    values.set(timesteps.slice(0, count).map((timestep) => BigInt(Math.round(timestep))));
  return { tensor: new Tensor("int64", values, dims), set };
}

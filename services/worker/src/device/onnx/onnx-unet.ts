import { invariant } from "@atelier/core";
import { latentSize } from "@atelier/diffusion";
import type { UnetBatch, UnetRow } from "../../stages/denoise.ts";
import type { Releasable, UnetLane } from "../device.ts";
import type { TensorSpec } from "./network-messages.ts";
import { type Binding, invalidGraph, type NetworkSession, type SharedValues } from "./network-session.ts";
import { FLOATS, type FloatType, INTEGERS, type TensorPort, tensorPort } from "./tensor-port.ts";

const SAMPLE = "sample";
const TIMESTEP = "timestep";
const EMBEDDING = "encoder_hidden_states";
/** What a row may bring besides, by name: SDXL's pooled text embedding and its sizes. */
const EXTRAS: readonly string[] = ["text_embeds", "time_ids"];

/**
 * One session of a U-Net in a diffusers or optimum export. Exports differ in the type and the shape of the timestep
 * (one for each row, or one for the whole run) and in precision; both are read from the session.
 */
export class OnnxUnet implements UnetLane, Releasable {
  readonly threads: number;
  readonly #session: NetworkSession;
  readonly #ports: UnetPorts;
  /** Whose text embedding each row of a binding holds. They stay the same from step to step, and are the largest input. */
  readonly #embedded = new WeakMap<Binding, (Float32Array | undefined)[]>();

  /** @throws ServingError INVALID_BUNDLE naming the file when the graph is no such U-Net, or asks for more. */
  constructor(session: NetworkSession, threads: number) {
    this.threads = threads;
    this.#session = session;
    this.#ports = unetPorts(session);
  }

  async predictNoise(batch: UnetBatch): Promise<readonly Float32Array[]> {
    if (this.#ports.timestepPerRow) return this.#run(batch);
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

  get weightsBytes(): number {
    return this.#session.weightsBytes;
  }

  release(): Promise<void> {
    return this.#session.release();
  }

  async #run(batch: UnetBatch): Promise<readonly Float32Array[]> {
    const { output } = this.#ports;
    const binding = this.#session.binding(this.#feeds(batch), [output.name]);
    this.#fill(binding, batch.rows);
    await this.#session.run(binding);
    const size = latentSize(batch.shape);
    const { values } = binding.outputs[output.name]!;
    return batch.rows.map((_, i) => values.subarray(i * size, (i + 1) * size));
  }

  #feeds({ shape, sequenceLength, rows }: UnetBatch): Record<string, TensorSpec> {
    const { sample, timestep, timestepPerRow, embedding, extras } = this.#ports;
    const first = rows[0]!;
    const count = rows.length;
    const timestepDims = timestepPerRow ? [count] : timestep.shape.length === 0 ? [] : [1];
    return {
      [SAMPLE]: { type: sample.type, dims: [count, shape.channels, shape.height, shape.width] },
      [TIMESTEP]: { type: timestep.type, dims: timestepDims },
      [EMBEDDING]: {
        type: embedding.type,
        dims: [count, sequenceLength, first.conditioning.length / sequenceLength],
      },
      ...Object.fromEntries(
        extras.map(({ name, type }) => [name, { type, dims: [count, extraOf(first, name).length] }]),
      ),
    };
  }

  #fill(binding: Binding, rows: readonly UnetRow[]): void {
    const { extras } = this.#ports;
    const embedded = this.#embedded.get(binding) ?? [];
    this.#embedded.set(binding, embedded);
    rows.forEach((row, i) => {
      setRow(binding, SAMPLE, i, rows.length, row.sample);
      if (embedded[i] !== row.conditioning) setRow(binding, EMBEDDING, i, rows.length, row.conditioning);
      embedded[i] = row.conditioning;
      for (const { name } of extras) setRow(binding, name, i, rows.length, extraOf(row, name));
    });
    const timesteps = binding.feeds[TIMESTEP]!;
    for (let i = 0; i < timesteps.length; i++) setTimestep(timesteps, i, rows[i]!.timestep);
  }
}

/** A graph's inputs and outputs, by what they mean. */
interface UnetPorts {
  readonly sample: TensorPort<FloatType>;
  readonly embedding: TensorPort<FloatType>;
  readonly timestep: TensorPort;
  readonly timestepPerRow: boolean;
  readonly extras: readonly TensorPort<FloatType>[];
  readonly output: TensorPort<FloatType>;
}

function unetPorts({ inputs, outputs, path }: NetworkSession): UnetPorts {
  const strange = inputs.filter(({ name }) => ![SAMPLE, TIMESTEP, EMBEDDING, ...EXTRAS].includes(name));
  if (strange.length > 0) {
    throw invalidGraph(path, `asks for inputs that are not known: ${strange.map(({ name }) => name).join(", ")}`);
  }
  const timestep = tensorPort(inputs, { name: TIMESTEP, types: [...FLOATS, ...INTEGERS], path });
  const extras = EXTRAS.filter((extra) => inputs.some(({ name }) => name === extra));
  return {
    sample: tensorPort(inputs, { name: SAMPLE, types: FLOATS, path }),
    embedding: tensorPort(inputs, { name: EMBEDDING, types: FLOATS, path }),
    timestep,
    timestepPerRow: typeof timestep.shape[0] === "string",
    extras: extras.map((name) => tensorPort(inputs, { name, types: FLOATS, path })),
    output: tensorPort(outputs, { name: outputs[0]?.name, types: FLOATS, path }),
  };
}

function extraOf(row: UnetRow, name: string): Float32Array {
  const values = row.extras?.[name];
  invariant(values !== undefined, `each row has what the graph asks for: ${name}`);
  return values;
}

function setRow({ feeds }: Binding, name: string, row: number, rows: number, values: Float32Array): void {
  const all = feeds[name] as Float32Array;
  invariant(values.length * rows === all.length, `each row's ${name} has the batch's shape`);
  all.set(values, row * values.length);
}

/** Whole-number graphs get the nearest timestep: truncating Euler's fractional ones is an error of up to 1e-2. */
function setTimestep(timesteps: SharedValues, i: number, timestep: number): void {
  if (timesteps instanceof BigInt64Array) timesteps[i] = BigInt(Math.round(timestep));
  else timesteps[i] = timesteps instanceof Int32Array ? Math.round(timestep) : timestep;
}

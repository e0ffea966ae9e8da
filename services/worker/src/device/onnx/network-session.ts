/// <reference lib="esnext.float16" />
import { once } from "node:events";
import { basename, dirname } from "node:path";
import { Worker } from "node:worker_threads";
import { invariant, ServingError } from "@atelier/core";
import type { InferenceSession } from "onnxruntime-node";
import type { Releasable } from "../device.ts";
import { weightsBytes } from "../weights-bytes.ts";
import type { FromNetwork, NetworkData, SharedTensor, TensorSpec, TensorType, ToNetwork } from "./network-messages.ts";
import { type SessionOptions, sessionOptions } from "./session-options.ts";

/** Shapes of call whose tensors are kept. A busy worker meets a few; each holds a few MB. */
const BINDINGS_MAX = 12;

/** A tensor's values, on this side. For float16, `set()` converts. */
export type SharedValues = Float32Array | Float16Array | BigInt64Array | Int32Array;

/** Inputs and outputs of one shape of call, over shared memory: written and read again and again. */
export interface Binding {
  readonly id: number;
  readonly feeds: Readonly<Record<string, SharedValues>>;
  /** By name, after the first run. The values are of the newest run. */
  readonly outputs: Readonly<Record<string, { readonly dims: readonly number[]; readonly values: Float32Array }>>;
}

/** One graph, open in a thread of its own. One run at a time. */
export class NetworkSession implements Releasable {
  readonly path: string;
  readonly weightsBytes: number;
  readonly inputs: readonly InferenceSession.ValueMetadata[];
  readonly outputs: readonly InferenceSession.ValueMetadata[];
  /** Why a graph that had better been rewritten is run as it is. */
  readonly note: string | undefined;
  readonly #thread: Thread;
  readonly #bindings = new Map<string, OwnBinding>(); // the longest unused first
  #bindingsMade = 0;

  private constructor(
    thread: Thread,
    { path, weightsBytes }: { path: string; weightsBytes: number },
    { inputs, outputs, note }: Extract<FromNetwork, { type: "opened" }>,
  ) {
    this.#thread = thread;
    this.path = path;
    this.weightsBytes = weightsBytes;
    this.inputs = inputs;
    this.outputs = outputs;
    this.note = note;
  }

  /** @throws ServingError INVALID_BUNDLE naming the file and onnxruntime's reason. */
  static async open(
    path: string,
    { timestepPerRow = false, ...options }: SessionOptions & Pick<NetworkData, "timestepPerRow">,
  ): Promise<NetworkSession> {
    const thread = new Thread({ path, options: sessionOptions(options), timestepPerRow });
    const answer = await thread.answer();
    if (answer.type === "opened")
      return new NetworkSession(thread, { path, weightsBytes: await weightsBytes(path) }, answer);
    invariant(answer.type === "not-opened", "a network's thread says first whether it opened");
    await thread.ended;
    throw invalidGraph(path, answer.message.split("\n")[0] ?? "unreadable");
  }

  /** The tensors for inputs of these types and sizes; the same ones as before where they are kept. */
  binding(feeds: Readonly<Record<string, TensorSpec>>, outputs: readonly string[]): Binding {
    const key = JSON.stringify([feeds, outputs]);
    const kept = this.#bindings.get(key);
    this.#bindings.delete(key);
    const binding = kept ?? new OwnBinding(this.#bindingsMade++, feeds, outputs);
    this.#bindings.set(key, binding);
    if (this.#bindings.size > BINDINGS_MAX) this.#forgetOldest();
    return binding;
  }

  /**
   * Runs the graph on what the binding's feeds hold.
   *
   * @throws ServingError OUT_OF_MEMORY when the device had none left, INTERNAL with onnxruntime's message otherwise.
   */
  async run(binding: Binding): Promise<void> {
    invariant(binding instanceof OwnBinding, "a binding of this session");
    const { id } = binding;
    this.#thread.say(binding.sent ? { type: "run", id } : { type: "run", id, binding: binding.spec });
    binding.sent = true;
    const answer = await this.#thread.answer();
    if (answer.type === "failed") throw runFailure(answer.message);
    invariant(answer.type === "ran", "a run is answered by its outcome");
    binding.wrote(answer.outputs);
  }

  async release(): Promise<void> {
    this.#thread.say({ type: "close" });
    await this.#thread.ended;
  }

  #forgetOldest(): void {
    const [key, { id }] = this.#bindings.entries().next().value!;
    this.#bindings.delete(key);
    this.#thread.say({ type: "forget", id });
  }
}

/** The thread, one question and one answer at a time. */
class Thread {
  readonly ended: Promise<unknown>;
  readonly #worker: Worker;
  #waiting: { resolve: (answer: FromNetwork) => void; reject: (error: Error) => void } | undefined;
  #lost: Error | undefined;

  constructor(workerData: NetworkData) {
    this.#worker = new Worker(new URL("./network.thread.ts", import.meta.url), { workerData });
    this.ended = once(this.#worker, "exit");
    this.#worker.on("message", (answer: FromNetwork) => this.#settle()?.resolve(answer));
    // A bug, or onnxruntime brought it down: whoever waits for it hears, and whoever asks next.
    const lost = (error: Error) => {
      this.#lost ??= error;
      this.#settle()?.reject(this.#lost);
    };
    this.#worker.on("error", lost);
    this.#worker.on("exit", () => lost(new Error(`the thread of ${workerData.path} has ended`)));
  }

  say(message: ToNetwork): void {
    this.#worker.postMessage(message);
  }

  answer(): Promise<FromNetwork> {
    invariant(this.#waiting === undefined, "a network runs one call at a time");
    if (this.#lost !== undefined) return Promise.reject(this.#lost);
    return new Promise((resolve, reject) => {
      this.#waiting = { resolve, reject };
    });
  }

  #settle() {
    const waiting = this.#waiting;
    this.#waiting = undefined;
    return waiting;
  }
}

class OwnBinding implements Binding {
  readonly id: number;
  readonly feeds: Readonly<Record<string, SharedValues>>;
  readonly spec: { readonly feeds: Readonly<Record<string, SharedTensor>>; readonly outputs: readonly string[] };
  /** The thread has it. */
  sent = false;
  outputs: Binding["outputs"] = {};
  #shared: readonly (readonly [name: string, tensor: SharedTensor])[] = [];

  constructor(id: number, feeds: Readonly<Record<string, TensorSpec>>, outputs: readonly string[]) {
    this.id = id;
    const shared = Object.entries(feeds).map(([name, spec]) => [name, { ...spec, buffer: allocate(spec) }] as const);
    this.feeds = Object.fromEntries(shared.map(([name, tensor]) => [name, valuesOver(tensor)]));
    this.spec = { feeds: Object.fromEntries(shared), outputs };
  }

  wrote(made: Readonly<Record<string, SharedTensor>> | undefined): void {
    if (made !== undefined) this.#shared = Object.entries(made);
    // float32 is read where it was written; float16 is converted anew after each run.
    if (made === undefined && this.#shared.every(([, { type }]) => type === "float32")) return;
    this.outputs = Object.fromEntries(
      this.#shared.map(([name, tensor]) => [name, { dims: tensor.dims, values: float32Of(tensor) }]),
    );
  }
}

const VALUES: Readonly<Record<TensorType, (buffer: SharedArrayBuffer) => SharedValues>> = {
  float32: (buffer) => new Float32Array(buffer),
  float16: (buffer) => new Float16Array(buffer),
  int64: (buffer) => new BigInt64Array(buffer),
  int32: (buffer) => new Int32Array(buffer),
};
const BYTES: Readonly<Record<TensorType, number>> = { float32: 4, float16: 2, int64: 8, int32: 4 };

function valuesOver({ type, buffer }: SharedTensor): SharedValues {
  return VALUES[type](buffer);
}

function allocate({ type, dims }: TensorSpec): SharedArrayBuffer {
  return new SharedArrayBuffer(dims.reduce((product, dim) => product * dim, BYTES[type]));
}

function float32Of(tensor: SharedTensor): Float32Array {
  const values = valuesOver(tensor);
  invariant(!(values instanceof BigInt64Array), "an output is of floats");
  return values instanceof Float32Array ? values : Float32Array.from(values);
}

/** "unet/model.onnx: ..." as an INVALID_BUNDLE. */
export function invalidGraph(path: string, complaint: string): ServingError {
  const file = `${basename(dirname(path))}/${basename(path)}`;
  return new ServingError("INVALID_BUNDLE", `${file}: ${complaint}`);
}

function runFailure(message: string): ServingError {
  const outOfMemory = /out of memory|failed to allocate|bad_alloc|BFCArena/i.test(message);
  return new ServingError(outOfMemory ? "OUT_OF_MEMORY" : "INTERNAL", `onnxruntime: ${message}`);
}

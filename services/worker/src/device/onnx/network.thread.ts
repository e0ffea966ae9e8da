/**
 * The thread of one network: opens one onnxruntime session and runs it, one call after another. Both block it, which is
 * why it is a thread of its own. It imports next to nothing, since several of them start with each model.
 */
import { parentPort, workerData } from "node:worker_threads";
import { env, InferenceSession, Tensor } from "onnxruntime-node";
import type { BindingSpec, FromNetwork, NetworkData, SharedTensor, ToNetwork } from "./network-messages.ts";

env.logLevel = "fatal"; // what goes wrong is said in our words; see providers.ts

interface Binding {
  readonly feeds: Readonly<Record<string, Tensor>>;
  /** Null where onnxruntime makes the tensor: at the first run, whose dimensions are not known before, and for float16. */
  readonly fetches: Record<string, Tensor | null>;
  readonly outputs: Map<string, SharedTensor>;
}

const port = parentPort!;
const say = (message: FromNetwork) => port.postMessage(message);
const bindings = new Map<number, Binding>();

const { path, options, timestepPerRow } = workerData as NetworkData;
let session: InferenceSession | undefined;
let note: string | undefined;
try {
  session = await InferenceSession.create(path, options);
  if (timestepPerRow === true) {
    const { hasTimestepPerRow, reopenedPerRow } = await import("./timestep-per-row.ts");
    if (!hasTimestepPerRow(session)) ({ session, cannot: note } = await reopenedPerRow(session, path, options));
  }
  // Before "opened": what is said at once in answer must find somebody who listens.
  port.on("message", hear);
  const { inputMetadata: inputs, outputMetadata: outputs } = session;
  say({ type: "opened", inputs, outputs, ...(note === undefined ? {} : { note }) });
} catch (error) {
  say({ type: "not-opened", message: (error as Error).message });
}

async function hear(message: ToNetwork): Promise<void> {
  switch (message.type) {
    case "run":
      if (message.binding !== undefined) bindings.set(message.id, bind(message.binding));
      try {
        const outputs = await run(bindings.get(message.id)!);
        say(outputs === undefined ? { type: "ran" } : { type: "ran", outputs });
      } catch (error) {
        say({ type: "failed", message: (error as Error).message });
      }
      break;
    case "forget":
      bindings.delete(message.id);
      break;
    case "close": // the last: nothing runs, since a call is awaited before the network is released
      await session!.release();
      port.close();
      break;
  }
}

/** Gives where the outputs are written, when that is new. */
async function run({ feeds, fetches, outputs }: Binding): Promise<Record<string, SharedTensor> | undefined> {
  const results = await session!.run(feeds, fetches);
  const made: Record<string, SharedTensor> = {};
  for (const [name, fetch] of Object.entries(fetches)) {
    if (fetch !== null) continue; // written in place
    const result = results[name] as Tensor;
    const bytes = bytesOf(result);
    let output = outputs.get(name);
    if (output === undefined) {
      const type = result.type as SharedTensor["type"];
      output = { type, dims: result.dims, buffer: new SharedArrayBuffer(bytes.length) };
      outputs.set(name, output);
      made[name] = output;
      // onnxruntime-node writes float16 to no array of ours.
      if (type === "float32") fetches[name] = tensorOver(output);
    }
    new Uint8Array(output.buffer).set(bytes);
  }
  return Object.keys(made).length === 0 ? undefined : made;
}

function bind({ feeds, outputs }: BindingSpec): Binding {
  return {
    feeds: Object.fromEntries(Object.entries(feeds).map(([name, shared]) => [name, tensorOver(shared)])),
    fetches: Object.fromEntries(outputs.map((name) => [name, null])),
    outputs: new Map(),
  };
}

function tensorOver({ type, dims, buffer }: SharedTensor): Tensor {
  switch (type) {
    case "float32":
      return new Tensor(type, new Float32Array(buffer), dims);
    case "int32":
      return new Tensor(type, new Int32Array(buffer), dims);
    case "int64":
      return new Tensor(type, new BigInt64Array(buffer), dims);
    case "float16": {
      // A plain object: the Tensor constructor refuses float16 where the runtime has a Float16Array of its own.
      const data = new Uint16Array(buffer);
      return { type, data, dims, size: data.length, location: "cpu" } as unknown as Tensor;
    }
  }
}

function bytesOf({ data }: Tensor): Uint8Array {
  const { buffer, byteOffset, byteLength } = data as Float32Array;
  return new Uint8Array(buffer, byteOffset, byteLength);
}

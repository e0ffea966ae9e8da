/**
 * A worker whose engine costs nothing, as a child process: takes every request at once, holds it for a fixed time, and
 * answers with bytes that stand for a picture. It spends no CPU on holding, so that what a caller waits beyond that is the
 * way there and back. Says what it held each request for in the receipt.
 *
 * Arguments: bytes of a picture, milliseconds of holding. Says its address.
 */
import {
  type GenerateRequest,
  GenerateResponseSchema,
  Sampler,
  Stage,
  WatchResponseSchema,
  WorkerService,
} from "@atelier/proto";
import { channelOptions, serviceDefinition } from "@atelier/rpc";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { Server, ServerCredentials, type ServerWritableStream } from "@grpc/grpc-js";

const QUEUE_MAX = 4096;
const HEARTBEAT_MS = 1000;
/** As a worker's states are coalesced where it took work on. */
const STATE_EVERY_MS = 5;

type Call = ServerWritableStream<GenerateRequest, unknown>;
const picture = new Uint8Array(Number(process.argv[2])).fill(7);
const holdMs = Number(process.argv[3]);
const watchers = new Set<ServerWritableStream<unknown, unknown>>();
let sequence = 0n;
let inFlight = 0;
let due = false;

const model = {
  id: "zero",
  name: "Zero",
  digest: "sha256:00",
  family: "sd1",
  license: "none",
  limits: { sizeMin: 64, sizeMax: 1024, sizeMultiple: 8, pixelsMax: 2n ** 20n, stepsMax: 10_000, numImagesMax: 4 },
  defaults: {
    nativeWidth: 512,
    nativeHeight: 512,
    width: 512,
    height: 512,
    steps: 20,
    guidanceScale: 5,
    sampler: Sampler.EULER,
  },
  stepMs: 1,
};

function changed(): void {
  if (due) return;
  due = true;
  setTimeout(tellState, STATE_EVERY_MS);
}

function tellState(): void {
  due = false;
  sequence += 1n;
  const state = {
    workerId: "zero",
    sequence,
    ready: true,
    device: "none",
    simulated: true,
    models: [model],
    requestsInFlight: inFlight,
    requestsFree: QUEUE_MAX - inFlight,
  };
  for (const watcher of watchers) watcher.write(create(WatchResponseSchema, { state }));
}

function generate(call: Call): void {
  const arrivedAtMs = performance.now();
  inFlight += 1;
  changed();
  sequence += 1n;
  const parameters = call.request.parameters!;
  const say = (event: NonNullable<MessageInitShape<typeof GenerateResponseSchema>["event"]>) =>
    call.write(create(GenerateResponseSchema, { event }));
  say({ case: "accepted", value: { backlogMs: 0, stepsTotal: parameters.steps, sequence } });
  say({ case: "progress", value: { stage: Stage.DENOISE, stepsDone: 1 } });
  setTimeout(() => {
    inFlight -= 1;
    changed();
    const { width, height, seed } = parameters;
    say({ case: "image", value: { imageIndex: 0, data: picture, mediaType: "image/png", width, height, seed } });
    const times = { queueMs: 0, textEncodeMs: 0, denoiseMs: performance.now() - arrivedAtMs, imageDecodeMs: 0 };
    const receipt = { parameters, modelDigest: "sha256:00", workerId: "zero", device: "none", simulated: true, times };
    say({ case: "completed", value: { receipt } });
    call.end();
  }, holdMs);
}

const server = new Server(channelOptions);
server.addService(serviceDefinition(WorkerService), {
  generate,
  watch: (call: ServerWritableStream<unknown, unknown>) => {
    watchers.add(call);
    call.on("cancelled", () => watchers.delete(call));
    tellState();
  },
});
setInterval(tellState, HEARTBEAT_MS);
server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  process.send!({ address: `127.0.0.1:${port}` });
});
process.on("disconnect", () => process.exit(0));

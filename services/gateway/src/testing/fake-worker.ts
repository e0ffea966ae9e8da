import { createHash } from "node:crypto";
import type { AddressInfo } from "node:net";
import { connect, createServer, type Socket, type Server as TcpServer } from "node:net";
import { ServingError } from "@atelier/core";
import {
  type EmbedTextRequest,
  type EmbedTextResponse,
  EmbedTextResponseSchema,
  type GenerateRequest,
  GenerateResponseSchema,
  Sampler,
  Stage,
  WatchResponseSchema,
  WorkerService,
  type WorkerStateSchema,
} from "@atelier/proto";
import { channelOptions, serviceDefinition, statusOf } from "@atelier/rpc";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import {
  Server,
  ServerCredentials,
  type ServerUnaryCall,
  type ServerWritableStream,
  type sendUnaryData,
} from "@grpc/grpc-js";

type StateInit = MessageInitShape<typeof WorkerStateSchema>;
type GenerateCall = ServerWritableStream<GenerateRequest, unknown>;

/** What the fake does with the next request. */
export type Behaviour =
  | {
      readonly kind: "answer";
      readonly after?: Promise<unknown>;
      readonly data?: Uint8Array;
      /** Reported, after the first step, before it waits for `after`. */
      readonly progress?: readonly { stage: Stage; stepsDone: number; imageIndex?: number; preview?: Uint8Array }[];
    }
  | { readonly kind: "fail"; readonly error: ServingError }
  /** Accepts and never answers. */
  | { readonly kind: "hang" }
  /** Accepts, reports a step, and then its process is gone. */
  | { readonly kind: "die" }
  /** The connection breaks once the receipt is out. */
  | { readonly kind: "die-after-receipt" }
  /** Ends the stream well, with something left out. */
  | { readonly kind: "leave-out"; readonly what: "receipt" | "images" };

/**
 * A worker for tests: a real gRPC server that draws nothing. It stands behind a small TCP relay, so that `kill()` looks
 * to the gateway as the death of a process does: the connection is reset, with no word in gRPC.
 */
export class FakeWorker {
  /** Requests that came, in order. */
  readonly requests: GenerateRequest[] = [];
  /** Ids of those that were taken back before they were answered. */
  readonly cancelled: string[] = [];
  /** Milliseconds since the epoch, by request id: the deadline that the call carried. */
  readonly deadlines = new Map<string, number>();
  /** Lists of texts that were to be embedded, in order. */
  readonly embedded: string[][] = [];
  /** The vector of a text; a function of the text alone where a test sets none. A ServingError is what the call fails with. */
  vectorOf: (text: string) => readonly number[] | ServingError = fakeVector;
  /** Answers come with the checkpoints that were asked for: latents of [4, height / 8, width / 8] whose bytes are the step. */
  checkpoints = false;
  /** For requests that have no behaviour of their own. */
  usually: Behaviour = { kind: "answer" };

  readonly #state: StateInit;
  readonly #script: Behaviour[] = [];
  #awaitingRequest: (() => void)[] = [];
  /** A worker speaks at least each second. */
  readonly #heartbeat = setInterval(() => this.publish({}), 1_000).unref();
  readonly #watchers = new Set<ServerWritableStream<unknown, unknown>>();
  readonly #server = new Server({ ...channelOptions });
  readonly #sockets = new Set<Socket>();
  #relay: TcpServer | undefined;
  #serverPort = 0;
  #port = 0;
  #sequence = 0n;

  private constructor(state: StateInit) {
    this.#state = {
      workerId: "w1",
      ready: true,
      device: "fake",
      simulated: true,
      models: [fakeModel()],
      requestsFree: 64,
      ...state,
    };
  }

  static async start(state: StateInit = {}): Promise<FakeWorker> {
    const worker = new FakeWorker(state);
    await worker.#listen();
    await worker.revive();
    return worker;
  }

  get address(): string {
    return `127.0.0.1:${this.#port}`;
  }

  /** The next requests are treated so, in order; then as usual. */
  next(...behaviours: readonly Behaviour[]): void {
    this.#script.push(...behaviours);
  }

  /** Resolves when another request has come. */
  nextRequest(): Promise<void> {
    return new Promise((resolve) => this.#awaitingRequest.push(resolve));
  }

  /** Tells every watcher the state with `changes`. */
  publish(changes: StateInit): void {
    Object.assign(this.#state, changes);
    for (const watcher of this.#watchers) this.#writeState(watcher);
  }

  /** Resets every connection and refuses new ones. */
  async kill(): Promise<void> {
    const relay = this.#relay;
    this.#relay = undefined;
    const closed = new Promise<void>((resolve) => (relay === undefined ? resolve() : relay.close(() => resolve())));
    for (const socket of this.#sockets) socket.resetAndDestroy();
    await closed;
  }

  /** Listens again, on the same port. Its states count from 1 again, as a new process's do. */
  async revive(): Promise<void> {
    this.#sequence = 0n;
    const relay = createServer({ noDelay: true }, (outside) => this.#join(outside));
    await new Promise<void>((resolve, reject) => relay.once("error", reject).listen(this.#port, "127.0.0.1", resolve));
    this.#relay = relay;
    this.#port = (relay.address() as AddressInfo).port;
  }

  async stop(): Promise<void> {
    clearInterval(this.#heartbeat);
    await this.kill();
    this.#server.forceShutdown();
  }

  async #listen(): Promise<void> {
    this.#server.addService(serviceDefinition(WorkerService), {
      generate: (call: GenerateCall) => void this.#generate(call),
      watch: (call: ServerWritableStream<unknown, unknown>) => this.#watch(call),
      embedText: (
        { request }: ServerUnaryCall<EmbedTextRequest, EmbedTextResponse>,
        reply: sendUnaryData<EmbedTextResponse>,
      ) => this.#embedText(request, reply),
    });
    this.#serverPort = await new Promise<number>((resolve, reject) => {
      this.#server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, port) =>
        error === null ? resolve(port) : reject(error),
      );
    });
  }

  #join(outside: Socket): void {
    const inside = connect({ port: this.#serverPort, host: "127.0.0.1", noDelay: true });
    for (const socket of [outside, inside]) {
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
      // A reset is what the tests are about; each side's end ends the other.
      socket.on("error", () => {});
    }
    outside.pipe(inside).pipe(outside);
    outside.on("close", () => inside.destroy());
    inside.on("close", () => outside.destroy());
  }

  #embedText({ texts }: EmbedTextRequest, reply: sendUnaryData<EmbedTextResponse>): void {
    this.embedded.push(texts);
    const vectors = texts.map((text) => this.vectorOf(text));
    const failure = vectors.find((vector) => vector instanceof ServingError);
    if (failure !== undefined) {
      reply(statusOf(failure), null);
      return;
    }
    const embeddings = vectors.map((values) => ({ values: [...(values as readonly number[])] }));
    reply(null, create(EmbedTextResponseSchema, { embeddings }));
  }

  #watch(call: ServerWritableStream<unknown, unknown>): void {
    this.#watchers.add(call);
    call.on("cancelled", () => this.#watchers.delete(call));
    this.#writeState(call);
  }

  #writeState(watcher: ServerWritableStream<unknown, unknown>): void {
    this.#sequence += 1n;
    const message: MessageInitShape<typeof WatchResponseSchema> = {
      state: { ...this.#state, sequence: this.#sequence },
    };
    watcher.write(create(WatchResponseSchema, message));
  }

  async #generate(call: GenerateCall): Promise<void> {
    const { request } = call;
    this.requests.push(request);
    for (const came of this.#awaitingRequest.splice(0)) came();
    const deadline = call.getDeadline();
    this.deadlines.set(request.requestId, deadline instanceof Date ? deadline.getTime() : deadline);
    let cancelled = false;
    let answered = false;
    call.on("cancelled", () => {
      // grpc-js says so of a call that ended well, too.
      if (answered) return;
      cancelled = true;
      this.cancelled.push(request.requestId);
    });

    const behaviour = this.#script.shift() ?? this.usually;
    const write = (event: MessageInitShape<typeof GenerateResponseSchema>["event"]) => {
      if (event !== undefined) call.write(create(GenerateResponseSchema, { event }));
    };
    if (behaviour.kind === "fail") {
      answered = true;
      call.emit("error", statusOf(behaviour.error));
      return;
    }
    const parameters = request.parameters!;
    write({ case: "accepted", value: { backlogMs: 1, stepsTotal: parameters.steps * parameters.numImages } });
    write({ case: "progress", value: { stage: Stage.DENOISE, stepsDone: 1 } });
    if (behaviour.kind === "hang") return;
    if (behaviour.kind === "die") {
      // After the events above have left.
      setTimeout(() => void this.kill(), 20);
      return;
    }
    if (behaviour.kind === "answer") {
      for (const value of behaviour.progress ?? []) write({ case: "progress", value });
      if (this.checkpoints) for (const state of checkpointsOf(request)) write({ case: "checkpoint", value: { state } });
      await behaviour.after;
    }
    if (cancelled) return;
    answered = true;

    const leftOut = behaviour.kind === "leave-out" ? behaviour.what : undefined;
    const data = (behaviour.kind === "answer" ? behaviour.data : undefined) ?? PICTURE;
    for (let imageIndex = 0; imageIndex < parameters.numImages && leftOut !== "images"; imageIndex++) {
      const seed = parameters.seed + BigInt(imageIndex);
      const mediaType = MEDIA_TYPES[request.format] ?? "image/png";
      write({
        case: "image",
        value: { imageIndex, data, mediaType, width: parameters.width, height: parameters.height, seed },
      });
    }
    if (leftOut !== "receipt") {
      const receipt = {
        parameters,
        modelDigest: "sha256:00",
        workerId: this.#state.workerId ?? "",
        device: this.#state.device ?? "",
        simulated: this.#state.simulated ?? false,
        hiresFix: { nativeWidth: 256, nativeHeight: 256, strength: 0.5, upscale: "bilinear" },
        times: { queueMs: 1, textEncodeMs: 2, denoiseMs: 3, imageDecodeMs: 4 },
        promptChunks: 1,
        embeddingsCached: true,
        preemptions: 2,
        batchDifference: 0.5,
        reusedSteps: request.startLatent?.stepIndex ?? 0,
      };
      write({ case: "completed", value: { receipt } });
    }
    if (behaviour.kind === "die-after-receipt") setTimeout(() => void this.kill(), 20);
    else call.end();
  }
}

/** A vector of length 1 that follows from the text; unlike texts are at right angles, more or less. */
function fakeVector(text: string): readonly number[] {
  const digest = createHash("sha256").update(text).digest();
  const values = Array.from({ length: 32 }, (_, i) => digest[i]! - 127.5);
  const length = Math.hypot(...values);
  return values.map((x) => x / length);
}

function checkpointsOf({ parameters, checkpointEverySteps: every, startLatent }: GenerateRequest) {
  const { steps, width, height, numImages } = parameters!;
  const shape = { channels: 4, height: height / 8, width: width / 8 };
  const latent = (step: number) => new Uint8Array(4 * shape.channels * shape.height * shape.width).fill(step);
  return Array.from({ length: numImages * steps }, (_, i) => ({ imageIndex: Math.floor(i / steps), step: i % steps }))
    .filter(({ step }) => every > 0 && step > (startLatent?.stepIndex ?? 0) && step % every === 0)
    .map(({ imageIndex, step }) => ({
      imageIndex,
      modelDigest: "sha256:00",
      phase: 0,
      stepIndex: step,
      shape,
      latent: latent(step),
    }));
}

/** Bytes that stand for a picture; nothing in the gateway looks into them. */
export const PICTURE = Uint8Array.from({ length: 2_000 }, (_, i) => i % 256);

const MEDIA_TYPES: Record<number, string> = { 1: "image/png", 2: "image/jpeg", 3: "image/webp" };

/** A model as atelier-tiny is. */
export function fakeModel(id = "atelier-tiny") {
  return {
    id,
    name: `The model ${id}`,
    digest: "sha256:00",
    family: "sd-tiny",
    license: "Apache-2.0",
    limits: { sizeMin: 64, sizeMax: 1024, sizeMultiple: 8, pixelsMax: 768n * 1024n, stepsMax: 150, numImagesMax: 4 },
    defaults: {
      nativeWidth: 256,
      nativeHeight: 256,
      width: 512,
      height: 512,
      steps: 25,
      guidanceScale: 2.5,
      sampler: Sampler.DPMPP_2M,
    },
    stepMs: 0.01, // it draws nothing
  };
}

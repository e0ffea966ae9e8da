import { type ChildProcess, fork } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import {
  type Completed,
  type GeneratedImage,
  type GenerateRequest,
  GenerateRequestSchema,
  type GenerateResponse,
  ImageFormat,
  PriorityClass,
  type WatchRequest,
  WatchRequestSchema,
  type WatchResponse,
  WorkerService,
  type WorkerState,
} from "@atelier/proto";
import { channelOptions, errorFromStatus, serviceDefinition } from "@atelier/rpc";
import { wireSampler } from "@atelier/worker";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { type ClientReadableStream, credentials, makeGenericClientConstructor, type ServiceError } from "@grpc/grpc-js";
import { end, whileRunning } from "./child.ts";
import type { PictureRequest } from "./picture-request.ts";

const entry = join(import.meta.dirname, "../../../services/worker/src/main.ts");
const START_MAX_MS = 120_000;
const REQUEST_MAX_MS = 120_000;

interface WorkerClient {
  generate(request: GenerateRequest, options: { deadline: number }): ClientReadableStream<GenerateResponse>;
  watch(request: WatchRequest): ClientReadableStream<WatchResponse>;
  close(): void;
}

export interface Drawn {
  readonly images: readonly GeneratedImage[];
  readonly receipt: Completed["receipt"];
}

/** A worker in a process of its own, ready, and a gRPC client of it. */
export class WorkerProcess {
  readonly #child: ChildProcess;
  readonly #client: WorkerClient;
  readonly #model: string;
  #state: WorkerState | undefined;
  #requests = 0;

  private constructor(child: ChildProcess, address: string, model: string) {
    this.#child = child;
    this.#model = model;
    const Client = makeGenericClientConstructor(serviceDefinition(WorkerService), WorkerService.typeName);
    this.#client = new Client(address, credentials.createInsecure(), channelOptions) as unknown as WorkerClient;
    const states = this.#client.watch(create(WatchRequestSchema));
    states.on("data", ({ state }: WatchResponse) => {
      this.#state = state;
    });
    states.on("error", () => {}); // the worker is gone, which whoever waits for a picture hears
  }

  /** `env` adds to the worker's configuration. */
  static async start(options: {
    model: string;
    threads: number;
    env?: Record<string, string>;
  }): Promise<WorkerProcess> {
    const { model, threads, env = {} } = options;
    const child = fork(entry, {
      env: {
        ...process.env,
        ATELIER_WORKER_LISTEN: "127.0.0.1:0",
        ATELIER_MODELS: model,
        ATELIER_THREADS: String(threads),
        ATELIER_LOG_LEVEL: "warn",
        ...env,
      },
      stdio: ["ignore", 2, 2, "ipc"],
    });
    let address = "";
    const ready = new Promise<void>((resolve) => {
      child.on("message", (message: { type: string; address?: string }) => {
        if (message.type === "listening") address = message.address!;
        if (message.type === "ready") resolve();
      });
    });
    await whileRunning(child, ready, { name: "the worker", timeoutMs: START_MAX_MS });
    const { id } = JSON.parse(readFileSync(join(model, "atelier.json"), "utf8")) as { id: string };
    return new WorkerProcess(child, address, id);
  }

  get pid(): number {
    return this.#child.pid!;
  }

  /** What the worker said of itself last; at most a second old. */
  get state(): WorkerState {
    if (this.#state === undefined) throw new Error("the worker has not said anything of itself yet");
    return this.#state;
  }

  /** One picture's PNG. */
  async drawPicture(picture: PictureRequest, priorityClass: PriorityClass = PriorityClass.STANDARD): Promise<Drawn> {
    const { sampler, seed, ...rest } = picture;
    return this.draw({
      requestId: `bench-${this.#requests++}`,
      format: ImageFormat.PNG,
      order: { priorityClass },
      parameters: { ...rest, model: this.#model, sampler: wireSampler(sampler), seed: BigInt(seed), numImages: 1 },
    });
  }

  /** Makes the images of one request, and resolves with them when the stream has ended. */
  draw(request: MessageInitShape<typeof GenerateRequestSchema>): Promise<Drawn> {
    const stream = this.#client.generate(create(GenerateRequestSchema, request), {
      deadline: Date.now() + REQUEST_MAX_MS,
    });
    const images: GeneratedImage[] = [];
    let receipt: Completed["receipt"];
    return new Promise((resolve, reject) => {
      stream.on("data", ({ event }: GenerateResponse) => {
        if (event.case === "image") images.push(event.value);
        if (event.case === "completed") receipt = event.value.receipt;
      });
      stream.on("error", (error: ServiceError) => reject(errorFromStatus(error, "bench")));
      stream.on("end", () => resolve({ images, receipt }));
    });
  }

  async stop(): Promise<void> {
    this.#client.close();
    await end(this.#child);
  }
}

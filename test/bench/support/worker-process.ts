import { type ChildProcess, fork } from "node:child_process";
import { join } from "node:path";
import {
  type Completed,
  type GeneratedImage,
  type GenerateRequest,
  GenerateRequestSchema,
  type GenerateResponse,
  WorkerService,
} from "@atelier/proto";
import { channelOptions, errorFromStatus, serviceDefinition } from "@atelier/rpc";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { type ClientReadableStream, credentials, makeGenericClientConstructor, type ServiceError } from "@grpc/grpc-js";
import { end, whileRunning } from "./child.ts";

const entry = join(import.meta.dirname, "../../../services/worker/src/main.ts");
const START_MAX_MS = 120_000;
const REQUEST_MAX_MS = 120_000;

type Generate = (request: GenerateRequest, options: { deadline: number }) => ClientReadableStream<GenerateResponse>;

export interface Drawn {
  readonly images: readonly GeneratedImage[];
  readonly receipt: Completed["receipt"];
}

/** A worker in a process of its own, ready, and a gRPC client of it. */
export class WorkerProcess {
  readonly #child: ChildProcess;
  readonly #client: { generate: Generate; close(): void };

  private constructor(child: ChildProcess, address: string) {
    this.#child = child;
    const Client = makeGenericClientConstructor(serviceDefinition(WorkerService), WorkerService.typeName);
    this.#client = new Client(address, credentials.createInsecure(), channelOptions) as unknown as {
      generate: Generate;
      close(): void;
    };
  }

  static async start({ model, threads }: { model: string; threads: number }): Promise<WorkerProcess> {
    const child = fork(entry, {
      env: {
        ...process.env,
        ATELIER_WORKER_LISTEN: "127.0.0.1:0",
        ATELIER_MODELS: model,
        ATELIER_THREADS: String(threads),
        ATELIER_LOG_LEVEL: "warn",
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
    return new WorkerProcess(child, address);
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

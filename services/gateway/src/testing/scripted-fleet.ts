import { type ErrorCode, invariant, ServingError } from "@atelier/core";
import {
  type GenerateRequest,
  GenerateRequestSchema,
  type GenerateResponse,
  GenerateResponseSchema,
  type ReceiptSchema,
  Stage,
} from "@atelier/proto";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import type { StreamHandlers } from "../fleet/worker-client.ts";
import type { WorkerView } from "../fleet/worker-view.ts";
import type { ImageRequest } from "../image-request.ts";
import type { PlaceLimits, Placement, Placer, Prediction } from "../placement/placer.ts";
import { modelView, workerView } from "./views.ts";

interface WorkerChanges {
  readonly ready?: boolean;
  readonly heard?: boolean;
  readonly digest?: string;
  readonly status?: "resident" | "loading" | "on_disk";
  readonly backlogMs?: WorkerView["backlogMs"];
}

/** Workers of the model "m" that do what a test says, and a placer that takes the first that is ready. No I/O. */
export class ScriptedFleet implements Placer {
  /** Every call that was made, in order. */
  readonly all: ScriptedCall[] = [];
  /** Placements that were given back after a call, as "address" or "address CODE". */
  readonly released: string[] = [];
  inFlight = 0;
  readonly #views: Map<string, WorkerView>;
  readonly #predicted: Prediction;

  constructor(addresses: readonly string[], { predictedMs }: { predictedMs: number }) {
    this.#views = new Map(addresses.map((address) => [address, workerView(address)]));
    this.#predicted = { waitMs: 0, workMs: predictedMs, finishMs: predictedMs, measured: true };
  }

  views(): readonly WorkerView[] {
    return [...this.#views.values()];
  }

  change(address: string, { digest, status, ...changes }: WorkerChanges): void {
    const model = { ...modelView("m", {}, status), ...(digest && { digest }) };
    this.#views.set(address, { ...this.#views.get(address)!, ...changes, models: new Map([["m", model]]) });
  }

  predict(): Prediction {
    return this.#predicted;
  }

  async place(_image: ImageRequest, { avoid, deadline, signal }: PlaceLimits): Promise<Placement> {
    signal.throwIfAborted();
    deadline.check("placing the request");
    const ready = this.views().filter((view) => view.ready);
    // Idle ones first, so that slices of a request go to different workers.
    const busy = new Set(this.all.filter((call) => !call.over).map(({ address }) => address));
    const others = ready.filter(({ address }) => !avoid.has(address));
    const worker = others.find(({ address }) => !busy.has(address)) ?? others[0] ?? ready[0];
    if (worker === undefined) throw new ServingError("NO_WORKER", "no worker is ready");
    let call: ScriptedCall | undefined;
    let held = true;
    this.inFlight += 1;
    return {
      worker,
      predicted: this.#predicted,
      client: {
        generate: (request, { deadlineAtMs }, handlers) => {
          call = new ScriptedCall(worker.address, create(GenerateRequestSchema, request), deadlineAtMs, handlers);
          this.all.push(call);
          return call.cancel;
        },
      },
      accepted: () => {},
      release: (failure) => {
        if (!held) return;
        held = false;
        this.inFlight -= 1;
        if (call === undefined) return;
        this.released.push(
          failure === undefined ? worker.address : `${worker.address} ${(failure as ServingError).code}`,
        );
      },
    };
  }

  /** Resolves with all calls once there are so many. */
  async calls(count: number): Promise<readonly ScriptedCall[]> {
    invariant(await this.callsWithin(count), `${count} calls are made, not ${this.all.length}`);
    return this.all;
  }

  /** Whether so many calls are made without time going on. */
  async callsWithin(count: number): Promise<boolean> {
    for (let turn = 0; turn < 20 && this.all.length < count; turn++) {
      await new Promise<void>((resolve) => setImmediate(resolve));
    }
    return this.all.length >= count;
  }
}

/** One call, and what its worker says. */
export class ScriptedCall {
  readonly address: string;
  readonly request: GenerateRequest;
  readonly deadlineAtMs: number;
  /** Taken back by the gateway. */
  cancelled = false;
  over = false;
  readonly #handlers: StreamHandlers<GenerateResponse>;
  readonly #sent = new Set<number>();

  constructor(
    address: string,
    request: GenerateRequest,
    deadlineAtMs: number,
    handlers: StreamHandlers<GenerateResponse>,
  ) {
    this.address = address;
    this.request = request;
    this.deadlineAtMs = deadlineAtMs;
    this.#handlers = handlers;
  }

  readonly cancel = (): void => {
    if (!this.over) this.cancelled = true;
    this.over = true;
  };

  accepted(stepsTotal: number): void {
    this.#say({ case: "accepted", value: { backlogMs: 1, stepsTotal } });
  }

  step(stepsDone: number, stage: Stage = Stage.DENOISE): void {
    this.#say({ case: "progress", value: { stage, stepsDone } });
  }

  checkpoint(imageIndex: number, stepIndex: number, bytes = 16): void {
    const shape = { channels: 4, height: 32, width: 32 };
    const state = { parameters: this.request.parameters!, imageIndex, stepIndex, shape, latent: new Uint8Array(bytes) };
    this.#say({ case: "checkpoint", value: { state } });
  }

  image(imageIndex: number, data = "picture"): void {
    this.#sent.add(imageIndex);
    const { width, height, seed } = this.request.parameters!;
    const value = { imageIndex, width, height, seed: seed + BigInt(imageIndex), mediaType: "image/png" };
    this.#say({ case: "image", value: { ...value, data: Buffer.from(data) } });
  }

  /** Sends what pictures are left, and the receipt, and ends well. */
  finish(receipt: MessageInitShape<typeof ReceiptSchema> = {}): void {
    const parameters = this.request.parameters!;
    for (let i = 0; i < parameters.numImages; i++) if (!this.#sent.has(i)) this.image(i);
    const value = { receipt: { parameters, workerId: this.address, modelDigest: "sha256:00", ...receipt } };
    this.#say({ case: "completed", value });
    this.#end();
  }

  fail(code: ErrorCode, options: ConstructorParameters<typeof ServingError>[2] = {}): void {
    this.#end(new ServingError(code, "as the test says", options));
  }

  #end(failure?: ServingError): void {
    if (this.over) return;
    this.over = true;
    this.#handlers.end(failure);
  }

  #say(event: MessageInitShape<typeof GenerateResponseSchema>["event"]): void {
    if (!this.over && event !== undefined) this.#handlers.message(create(GenerateResponseSchema, { event }));
  }
}

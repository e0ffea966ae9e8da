import { type Clock, Deadline, ServingError, systemClock, toServingError } from "@atelier/core";
import {
  type DrainRequest,
  type DrainResponse,
  DrainResponseSchema,
  type EmbedTextRequest,
  type EmbedTextResponse,
  EmbedTextResponseSchema,
  type GenerateRequest,
  type GenerateResponse,
  type LoadModelRequest,
  type LoadModelResponse,
  LoadModelResponseSchema,
  type UnloadModelRequest,
  type UnloadModelResponse,
  UnloadModelResponseSchema,
  type WatchRequest,
  type WatchResponse,
  WatchResponseSchema,
  WorkerService,
} from "@atelier/proto";
import {
  channelOptions,
  headersOf,
  REQUEST_ID_METADATA,
  reflectionOf,
  serviceDefinition,
  statusOf,
  type TlsFiles,
} from "@atelier/rpc";
import { inScope, type Logger, type Span, startSpan, traceContextOf } from "@atelier/telemetry";
import { create } from "@bufbuild/protobuf";
import {
  Server,
  ServerCredentials,
  type ServerUnaryCall,
  type ServerWritableStream,
  type sendUnaryData,
} from "@grpc/grpc-js";
import { HealthImplementation } from "grpc-health-check";
import { type Address, addressText, cannotListen } from "../config.ts";
import type { WorkerMetrics } from "../metrics.ts";
import type { Pipeline } from "../pipeline.ts";
import { EventWriter } from "./event-writer.ts";
import { StatePublisher } from "./state-publisher.ts";
import { readGenerateRequest, wireAccepted, wireCheckpoint, wireCompleted, wireEvent, wireState } from "./wire.ts";
import { describeWorker, type WorkerIdentity, wirePlace } from "./worker-state.ts";

const GENERATE_SPAN = `${WorkerService.typeName}/Generate`;
/** A call without a deadline gets this one: nothing runs for ever. */
const CALL_MAX_MS = 15 * 60_000;
/** How long open streams may keep the server from closing. */
const CLOSE_MAX_MS = 1000;

export interface WorkerServerOptions {
  readonly listen: Address;
  readonly identity: WorkerIdentity;
  readonly metrics: WorkerMetrics;
  readonly logger: Logger;
  /** Absent: whoever reaches it is served, in clear. */
  readonly tls?: TlsFiles | undefined;
  readonly clock?: Clock;
}

/** Work that the worker fetches by itself, and stops fetching when it leaves. */
export interface PulledWork {
  /** Nothing more is fetched. */
  stop(): void;
  /** What is left is given back. */
  leave(): void;
  /** Resolves when nothing of it is left. */
  settled(): Promise<void>;
}

/** Binds the port; every call but Watch, health and reflection is refused until `open()`. */
export async function serveWorker(options: WorkerServerOptions): Promise<WorkerServer> {
  const server = new WorkerServer(options);
  await server.bind();
  return server;
}

/** The worker's gRPC face. Turns messages into the pipeline's words and back; decides nothing about images. */
export class WorkerServer {
  readonly #options: WorkerServerOptions;
  readonly #clock: Clock;
  readonly #server = new Server(channelOptions);
  readonly #health = new HealthImplementation({ "": "NOT_SERVING", [WorkerService.typeName]: "NOT_SERVING" });
  readonly #publisher: StatePublisher<WatchResponse>;
  readonly #watching = new Set<ServerWritableStream<WatchRequest, WatchResponse>>();
  #pipeline: Pipeline | undefined;
  #pulled: PulledWork | undefined;
  #warm = false;
  #draining = false;
  #imagesHandedBack = 0;
  #finished = 0; // requests that ended well
  #port = 0;

  constructor(options: WorkerServerOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#publisher = new StatePublisher(this.#clock, (sequence) =>
      create(WatchResponseSchema, {
        state: describeWorker(options.identity, sequence, this.#pipeline, {
          warm: this.#warm,
          draining: this.#draining,
        }),
      }),
    );
  }

  /** "host:port", the port that was bound. */
  get address(): string {
    return addressText({ ...this.#options.listen, port: this.#port });
  }

  get serving(): boolean {
    return this.#warm && !this.#draining;
  }

  async bind(): Promise<void> {
    this.#server.addService(serviceDefinition(WorkerService), {
      generate: (call: ServerWritableStream<GenerateRequest, GenerateResponse>) => void this.#traced(call),
      watch: (call: ServerWritableStream<WatchRequest, WatchResponse>) => this.#watch(call),
      drain: (call: ServerUnaryCall<DrainRequest, DrainResponse>, reply: sendUnaryData<DrainResponse>) =>
        void this.#drainCall(call, reply),
      loadModel: (call: ServerWritableStream<LoadModelRequest, LoadModelResponse>) => void this.#loadModel(call),
      unloadModel: (
        call: ServerUnaryCall<UnloadModelRequest, UnloadModelResponse>,
        reply: sendUnaryData<UnloadModelResponse>,
      ) => void this.#unloadModel(call, reply),
      embedText: (
        call: ServerUnaryCall<EmbedTextRequest, EmbedTextResponse>,
        reply: sendUnaryData<EmbedTextResponse>,
      ) => void this.#embedText(call, reply),
    });
    this.#health.addToServer(this.#server);
    reflectionOf([WorkerService]).addToServer(this.#server);
    this.#port = await new Promise<number>((resolve, reject) => {
      const target = addressText(this.#options.listen);
      const credentials = this.#options.tls?.serverCredentials() ?? ServerCredentials.createInsecure();
      this.#server.bindAsync(target, credentials, (error, port) =>
        error === null ? resolve(port) : reject(cannotListen("ATELIER_WORKER_LISTEN", target, error)),
      );
    });
  }

  /** From now on those who watch see the pipeline's models being loaded. */
  show(pipeline: Pipeline): void {
    this.#pipeline = pipeline;
    pipeline.onChange((change) => {
      if (change === "took-on") this.#publisher.tookOn();
      else this.#publisher.changed();
    });
    this.#publisher.changed();
  }

  /** Work beside the requests, to be drained with them. */
  pulls(work: PulledWork): void {
    this.#pulled = work;
    if (this.#draining) work.stop();
  }

  /** The pipeline that is shown is warm: admits requests, and says so. */
  open(): void {
    this.#warm = true;
    this.#setHealth("SERVING");
    this.#publisher.changed();
  }

  /**
   * Stops admitting, waits up to `timeoutMs` for what is in flight, and hands back what is left: its callers hear where
   * each image stands, and then DRAINING. Another worker goes on from there.
   */
  async drain({ timeoutMs }: { timeoutMs: number }): Promise<{ finished: number; imagesHandedBack: number }> {
    this.#draining = true;
    this.#setHealth("NOT_SERVING");
    this.#publisher.changed();
    const before = this.#finished;
    const pipeline = this.#pipeline;
    this.#pulled?.stop();
    if (pipeline !== undefined) {
      const giveUp = this.#clock.after(timeoutMs, () => {
        pipeline.handBack(
          new ServingError("DRAINING", `worker ${this.#options.identity.id} is leaving and out of time`),
        );
        this.#pulled?.leave();
      });
      await Promise.all([pipeline.idle(), this.#pulled?.settled()]);
      giveUp();
    }
    return { finished: this.#finished - before, imagesHandedBack: this.#imagesHandedBack };
  }

  /** Ends every stream and lets the port go. */
  async close(): Promise<void> {
    for (const call of this.#watching) call.end();
    const force = this.#clock.after(CLOSE_MAX_MS, () => this.#server.forceShutdown());
    await new Promise<void>((resolve) => this.#server.tryShutdown(() => resolve()));
    force();
  }

  /** The call as its own part of its request's trace, with the request's name on every line that is logged for it. */
  async #traced(call: ServerWritableStream<GenerateRequest, GenerateResponse>): Promise<void> {
    const headers = headersOf(call.metadata);
    const { requestId, order } = call.request;
    const request_id = headers[REQUEST_ID_METADATA] ?? requestId;
    const attributes = {
      "rpc.system": "grpc",
      "rpc.service": WorkerService.typeName,
      "rpc.method": "Generate",
      "atelier.request_id": request_id,
      "atelier.call_id": requestId,
      "atelier.worker.id": this.#options.identity.id,
    };
    const span = startSpan(GENERATE_SPAN, { kind: "server", attributes }, traceContextOf(headers));
    const fields = { request_id, ...(order !== undefined && order.tenant !== "" && { tenant: order.tenant }) };
    await inScope({ fields, span }, () => this.#generate(call, span));
  }

  async #generate(call: ServerWritableStream<GenerateRequest, GenerateResponse>, span: Span): Promise<void> {
    const startedAtMs = this.#clock.nowMs();
    const { identity, metrics, logger } = this.#options;
    const gone = new AbortController();
    const deadline = this.#deadlineOf(call);
    call.on("cancelled", () => gone.abort(callEnded(deadline)));
    const writer = new EventWriter<GenerateResponse>(call);
    const unfinished = new Set<number>(); // images that have a checkpoint and no file yet
    let outcome = "ok";
    try {
      const pipeline = this.#admitting();
      const request = readGenerateRequest(call.request, this.#clock);
      const made = await pipeline.generate(request, {
        signal: gone.signal,
        deadline,
        span,
        onEvent: (event) => {
          if (event.type === "checkpoint") {
            const state = wireState(event, { parameters: call.request.parameters!, device: identity.device });
            unfinished.add(event.imageIndex);
            writer.writeNewest(`checkpoint ${event.imageIndex}`, wireCheckpoint(state));
            return;
          }
          if (event.type === "image") unfinished.delete(event.imageIndex);
          if (event.type === "accepted") writer.write(wireAccepted(event, this.#publisher.nextSequence()));
          else if (event.type === "progress") writer.writeNewest("progress", wireEvent(event));
          else writer.write(wireEvent(event));
        },
      });
      this.#finished += 1;
      const parameters = { ...call.request.parameters!, initImageDigest: request.initImage?.digest ?? "" };
      writer.write(wireCompleted(parameters, made, identity));
      call.end();
    } catch (error) {
      const { code } = toServingError(error);
      outcome = code;
      span.fail(error);
      if (code === "DRAINING") {
        writer.flush(); // where the images stand is what the caller goes on from
        this.#imagesHandedBack += unfinished.size;
      }
      if (code === "INTERNAL") logger.error({ err: error, call_id: call.request.requestId }, "a request failed");
      call.emit("error", statusOf(error));
    }
    const ms = this.#clock.nowMs() - startedAtMs;
    metrics.requestEnded(outcome, ms);
    span.end();
    logger.debug({ call_id: call.request.requestId, outcome, duration_ms: ms }, "request ended");
  }

  #watch(call: ServerWritableStream<WatchRequest, WatchResponse>): void {
    const writer = new EventWriter<WatchResponse>(call);
    this.#watching.add(call);
    const end = this.#publisher.watch((state) => writer.writeNewest("state", state));
    const ended = () => {
      this.#watching.delete(call);
      end();
    };
    call.on("cancelled", ended);
    call.on("finish", ended);
  }

  async #drainCall(
    call: ServerUnaryCall<DrainRequest, DrainResponse>,
    reply: sendUnaryData<DrainResponse>,
  ): Promise<void> {
    this.#options.logger.info({ graceMs: call.request.graceMs }, "asked to drain");
    reply(null, create(DrainResponseSchema, await this.drain({ timeoutMs: call.request.graceMs })));
  }

  async #loadModel(call: ServerWritableStream<LoadModelRequest, LoadModelResponse>): Promise<void> {
    const { model } = call.request;
    const gone = new AbortController();
    const deadline = this.#deadlineOf(call);
    call.on("cancelled", () => gone.abort(callEnded(deadline)));
    const writer = new EventWriter<LoadModelResponse>(call);
    try {
      const pipeline = this.#admitting();
      const response = () => {
        const place = pipeline.state.places.find(({ id }) => id === model);
        return create(LoadModelResponseSchema, place === undefined ? {} : { place: wirePlace(place) });
      };
      const loaded = pipeline.loadModel(model, { signal: gone.signal, deadline });
      const off = pipeline.onChange(() => writer.writeNewest("place", response()));
      await loaded.finally(off);
      writer.write(response());
      call.end();
      this.#options.logger.info({ model }, "model loaded as asked");
    } catch (error) {
      call.emit("error", statusOf(error));
    }
  }

  async #unloadModel(
    call: ServerUnaryCall<UnloadModelRequest, UnloadModelResponse>,
    reply: sendUnaryData<UnloadModelResponse>,
  ): Promise<void> {
    const { model } = call.request;
    try {
      const freed = await this.#admitting().unloadModel(model);
      this.#options.logger.info({ model, freedBytes: freed }, "model unloaded as asked");
      reply(null, create(UnloadModelResponseSchema, { freedBytes: BigInt(Math.round(freed)) }));
    } catch (error) {
      reply(statusOf(error), null);
    }
  }

  async #embedText(
    call: ServerUnaryCall<EmbedTextRequest, EmbedTextResponse>,
    reply: sendUnaryData<EmbedTextResponse>,
  ): Promise<void> {
    const { model, texts } = call.request;
    const gone = new AbortController();
    const deadline = this.#deadlineOf(call);
    call.on("cancelled", () => gone.abort(callEnded(deadline)));
    try {
      const vectors = await this.#admitting().embedTexts(model, texts, { signal: gone.signal, deadline });
      reply(null, create(EmbedTextResponseSchema, { embeddings: vectors.map((values) => ({ values: [...values] })) }));
    } catch (error) {
      if (toServingError(error).code === "INTERNAL") this.#options.logger.error({ err: error, model }, "no embedding");
      reply(statusOf(error), null);
    }
  }

  #admitting(): Pipeline {
    const { id } = this.#options.identity;
    if (this.#draining) throw new ServingError("DRAINING", `worker ${id} is leaving and admits nothing new`);
    if (!this.#warm || this.#pipeline === undefined)
      throw new ServingError("NO_WORKER", `worker ${id} is still loading its models`);
    return this.#pipeline;
  }

  #deadlineOf(call: { getDeadline(): Date | number }): Deadline {
    const stated = call.getDeadline();
    const atMs = stated instanceof Date ? stated.getTime() : stated;
    const latestMs = this.#clock.nowMs() + CALL_MAX_MS;
    return new Deadline(this.#clock, Math.min(atMs, latestMs));
  }

  #setHealth(status: "SERVING" | "NOT_SERVING"): void {
    this.#health.setStatus("", status);
    this.#health.setStatus(WorkerService.typeName, status);
  }
}

/** grpc-js tells an expired call and one that was taken back in the same way. */
function callEnded(deadline: Deadline): ServingError {
  if (deadline.passed) return new ServingError("DEADLINE_EXCEEDED", "the call's deadline passed");
  return new ServingError("CANCELLED", "the caller went away or took the request back");
}

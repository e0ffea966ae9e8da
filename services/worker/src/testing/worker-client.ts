import {
  DrainRequestSchema,
  type DrainResponse,
  EmbedTextRequestSchema,
  type EmbedTextResponse,
  type GenerateRequest,
  GenerateRequestSchema,
  type GenerateResponse,
  type GenerationParameters,
  ImageFormat,
  LoadModelRequestSchema,
  type LoadModelResponse,
  type ModelPlace,
  Sampler,
  UnloadModelRequestSchema,
  type UnloadModelResponse,
  WatchRequestSchema,
  type WatchResponse,
  WorkerService,
  type WorkerState,
} from "@atelier/proto";
import { channelOptions, errorFromStatus, serviceDefinition } from "@atelier/rpc";
import { create } from "@bufbuild/protobuf";
import {
  type CallOptions,
  type Client,
  type ClientReadableStream,
  credentials,
  makeClientConstructor,
  type ServiceError,
} from "@grpc/grpc-js";
import { service as healthDefinition } from "grpc-health-check";

type Parameters = Partial<Omit<GenerationParameters, "$typeName" | "$unknown">>;
type Rest = Partial<Omit<GenerateRequest, "$typeName" | "$unknown" | "parameters">>;
type Event = NonNullable<GenerateResponse["event"]>;
type EventCase = NonNullable<Event["case"]>;
type EventValue<Case extends EventCase> = Extract<Event, { case: Case }>["value"];

/** One generation as its caller sees it. */
export interface Generation {
  /** Every event so far, in order. */
  readonly events: readonly Event[];
  /** The values of one kind of event so far. */
  all<Case extends EventCase>(kind: Case): EventValue<Case>[];
  /** Resolves at the first event of this kind that `fits`; rejects as `ended` does. */
  first<Case extends EventCase>(
    kind: Case,
    fits?: (value: EventValue<Case>) => boolean,
  ): Promise<Awaited<EventValue<Case>>>;
  /** Resolves at the end of the stream; rejects with the ServingError that it failed with. */
  readonly ended: Promise<void>;
  cancel(): void;
  /** Stops and goes on reading. */
  pause(): void;
  resume(): void;
}

/** A client of one worker, for tests. */
export class WorkerClient {
  readonly #address: string;
  readonly #client: Client;
  readonly #health: Client;

  constructor(address: string) {
    this.#address = address;
    const Worker = makeClientConstructor(serviceDefinition(WorkerService), "WorkerService");
    const Health = makeClientConstructor(healthDefinition, "Health");
    this.#client = new Worker(address, credentials.createInsecure(), channelOptions);
    this.#health = new Health(address, credentials.createInsecure());
  }

  /** A small picture of a few steps, but for what `parameters` and `rest` say. */
  generate(parameters: Parameters = {}, rest: Rest = {}, options: CallOptions = {}): Generation {
    const request = create(GenerateRequestSchema, {
      requestId: `request-${Math.random()}`,
      format: ImageFormat.PNG,
      ...rest,
      parameters: { ...SMALL, ...parameters },
    });
    const call = this.#stream<GenerateResponse>("generate", request, options);
    const events: Event[] = [];
    const waiting = new Set<() => void>();
    call.on("data", ({ event }: GenerateResponse) => {
      events.push(event);
      for (const look of [...waiting]) look();
    });
    const ended = new Promise<void>((resolve, reject) => {
      call.on("end", resolve);
      call.on("error", (error: ServiceError) => reject(errorFromStatus(error, this.#address)));
    });
    ended.catch(() => {}); // whoever cares awaits it
    const all = <Case extends EventCase>(kind: Case) =>
      events.filter((event) => event.case === kind).map((event) => event.value as EventValue<Case>);
    return {
      events,
      all,
      first: (kind, fits = () => true) =>
        new Promise((resolve, reject) => {
          const look = () => {
            const found = all(kind).find(fits);
            if (found === undefined) return;
            waiting.delete(look);
            resolve(found as Awaited<typeof found>);
          };
          waiting.add(look);
          look();
          ended.then(() => reject(new Error(`the stream ended without such a ${kind}`)), reject);
        }),
      ended,
      cancel: () => call.cancel(),
      pause: () => call.pause(),
      resume: () => call.resume(),
    };
  }

  /** The first published state that `fits`. */
  state(fits: (state: WorkerState) => boolean = () => true): Promise<WorkerState> {
    const call = this.#stream<WatchResponse>("watch", create(WatchRequestSchema), {});
    return new Promise((resolve, reject) => {
      call.on("data", ({ state }: WatchResponse) => {
        if (state === undefined || !fits(state)) return;
        resolve(state);
        call.cancel();
      });
      call.on("error", reject); // after `resolve`, the cancellation: without effect
    });
  }

  /** "SERVING", "NOT_SERVING", ... */
  health(): Promise<string> {
    return this.#unary<{ status: string }>(this.#health, "check", { service: "" }).then(({ status }) => status);
  }

  drain(graceMs: number): Promise<DrainResponse> {
    return this.#unary(this.#client, "drain", create(DrainRequestSchema, { graceMs }));
  }

  /** Resolves to the places that were told, once the model is resident; rejects with the ServingError. */
  loadModel(model: string): Promise<readonly ModelPlace[]> {
    const call = this.#stream<LoadModelResponse>("loadModel", create(LoadModelRequestSchema, { model }), {});
    const places: ModelPlace[] = [];
    return new Promise((resolve, reject) => {
      call.on("data", ({ place }: LoadModelResponse) => places.push(place!));
      call.on("error", (error: ServiceError) => reject(errorFromStatus(error, this.#address)));
      call.on("end", () => resolve(places));
    });
  }

  unloadModel(model: string): Promise<UnloadModelResponse> {
    return this.#unary(this.#client, "unloadModel", create(UnloadModelRequestSchema, { model }));
  }

  /** One vector for each text. */
  async embedText(model: string, texts: readonly string[]): Promise<readonly (readonly number[])[]> {
    const request = create(EmbedTextRequestSchema, { model, texts: [...texts] });
    const { embeddings } = await this.#unary<EmbedTextResponse>(this.#client, "embedText", request);
    return embeddings.map(({ values }) => values);
  }

  close(): void {
    this.#client.close();
    this.#health.close();
  }

  #stream<Message>(method: string, request: object, options: CallOptions): ClientReadableStream<Message> {
    const { path, requestSerialize, responseDeserialize } = serviceDefinition(WorkerService)[method]!;
    return this.#client.makeServerStreamRequest(path, requestSerialize, responseDeserialize, request, options);
  }

  #unary<Reply>(client: Client, method: string, request: object): Promise<Reply> {
    return new Promise((resolve, reject) => {
      const methods = client as unknown as Record<string, (...args: unknown[]) => void>;
      methods[method]!(request, (error: ServiceError | null, reply: Reply) =>
        error === null ? resolve(reply) : reject(errorFromStatus(error, this.#address)),
      );
    });
  }
}

/** The default of `generate`. */
export const SMALL = {
  model: "atelier-tiny",
  prompt: "a red mug",
  negativePrompt: "",
  width: 128,
  height: 128,
  steps: 4,
  guidanceScale: 2.5,
  sampler: Sampler.DPMPP_2M,
  seed: 7n,
  numImages: 1,
} satisfies Parameters;

import { ServingError } from "@atelier/core";
import {
  EmbedTextRequestSchema,
  type EmbedTextResponse,
  type GenerateRequest,
  GenerateRequestSchema,
  type GenerateResponse,
  WatchRequestSchema,
  type WatchResponse,
  WorkerService,
  type WorkerState,
} from "@atelier/proto";
import { type CallContext, channelOptions, errorFromStatus, metadataOf, serviceDefinition } from "@atelier/rpc";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import {
  type ChannelCredentials,
  Client,
  type ClientReadableStream,
  credentials,
  type MethodDefinition,
  type ServiceError,
} from "@grpc/grpc-js";

export interface WorkerSecurity {
  readonly credentials: ChannelCredentials;
  /** What the worker's certificate is made out to; undefined: to its address. */
  readonly serverName: string | undefined;
}

const IN_CLEAR: WorkerSecurity = { credentials: credentials.createInsecure(), serverName: undefined };

/** One channel to one worker, kept open. */
export class WorkerClient {
  readonly address: string;
  readonly #client: Client;

  constructor(address: string, security: WorkerSecurity = IN_CLEAR) {
    this.address = address;
    const { serverName } = security;
    this.#client = new Client(address, security.credentials, {
      ...channelOptions,
      ...(serverName !== undefined && { "grpc.ssl_target_name_override": serverName }),
      // The channel must not wait longer than our own backoff before it dials again (grpc-js: up to 2 minutes).
      "grpc.initial_reconnect_backoff_ms": 100,
      "grpc.max_reconnect_backoff_ms": 2_000,
    });
  }

  /** Starts a generation. Calling the result takes it back: the worker frees its slot at the next step. */
  generate(
    request: MessageInitShape<typeof GenerateRequestSchema>,
    { deadlineAtMs, context = {} }: { deadlineAtMs: number; context?: CallContext },
    handlers: StreamHandlers<GenerateResponse>,
  ): () => void {
    const message = create(GenerateRequestSchema, request);
    return follow(
      this.#stream<GenerateRequest, GenerateResponse>("generate", message, deadlineAtMs, context),
      this.address,
      handlers,
    );
  }

  /**
   * The worker's state, until the stream breaks. It has no deadline: it lives as long as both ends, and silence on it
   * is the caller's to judge.
   */
  watch(handlers: StreamHandlers<WorkerState>): () => void {
    const stream = this.#stream<object, WatchResponse>("watch", create(WatchRequestSchema), Number.POSITIVE_INFINITY);
    return follow(stream, this.address, {
      message: ({ state }) => {
        if (state !== undefined) handlers.message(state);
      },
      end: handlers.end,
    });
  }

  /**
   * What texts mean to a model that is resident there: vectors of length 1, one for each of at most 64, in order.
   * Rejects with the ServingError that the worker gave; DEADLINE_EXCEEDED once `timeoutMs` have passed.
   */
  embedText(model: string, texts: readonly string[], { timeoutMs }: { timeoutMs: number }): Promise<Float32Array[]> {
    const message = create(EmbedTextRequestSchema, { model, texts: [...texts] });
    const { path, requestSerialize, responseDeserialize } = methods["embedText"] as MethodDefinition<
      typeof message,
      EmbedTextResponse
    >;
    const deadline = Date.now() + timeoutMs;
    return new Promise((resolve, reject) => {
      this.#client.makeUnaryRequest(
        path,
        requestSerialize,
        responseDeserialize,
        message,
        { deadline },
        (error, reply) => {
          if (error !== null) reject(errorFromStatus(error, this.address));
          else if (reply?.embeddings.length !== texts.length) {
            const message = `worker ${this.address} gave ${reply?.embeddings.length} embeddings for ${texts.length} texts`;
            reject(new ServingError("INTERNAL", message));
          } else resolve(reply.embeddings.map(({ values }) => Float32Array.from(values)));
        },
      );
    });
  }

  close(): void {
    this.#client.close();
  }

  #stream<In, Out>(
    method: string,
    message: In,
    deadline: number,
    context: CallContext = {},
  ): ClientReadableStream<Out> {
    const { path, requestSerialize, responseDeserialize } = methods[method] as MethodDefinition<In, Out>;
    const metadata = metadataOf(context);
    const options = { deadline };
    return this.#client.makeServerStreamRequest(
      path,
      requestSerialize,
      responseDeserialize,
      message,
      metadata,
      options,
    );
  }
}

export interface StreamHandlers<Message> {
  message(message: Message): void;
  /** Called once, after the last message: with the failure, or with nothing when the worker ended the stream well. */
  end(failure?: ServingError): void;
}

const methods = serviceDefinition(WorkerService);

/** Hands the stream's events over until it ends or is taken back, and nothing afterwards. */
function follow<Message>(
  stream: ClientReadableStream<Message>,
  peer: string,
  handlers: StreamHandlers<Message>,
): () => void {
  let over = false;
  const end = (failure?: ServingError) => {
    if (over) return;
    over = true;
    handlers.end(failure);
  };
  stream.on("data", (message: Message) => {
    if (!over) handlers.message(message);
  });
  stream.on("error", (failure: ServiceError) => end(errorFromStatus(failure, peer)));
  stream.on("end", () => end());
  return () => {
    over = true;
    stream.cancel();
  };
}

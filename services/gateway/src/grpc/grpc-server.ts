import { type Clock, ConfigError, ServingError } from "@atelier/core";
import { HTTP_STATUS, requestIdOf, retryAfterSeconds } from "@atelier/http";
import {
  type CancelGenerationRequest,
  type CancelGenerationResponse,
  Generation,
  type GetGenerationRequest,
  type GetGenerationResponse,
  type ListModelsRequest,
  type ListModelsResponse,
} from "@atelier/proto";
import {
  channelOptions,
  headersOf,
  metadataOf,
  REQUEST_ID_METADATA,
  reflectionOf,
  serviceDefinition,
  statusOf,
  type TlsFiles,
} from "@atelier/rpc";
import { addLogFields, inScope, type Logger, type Span, startSpan, traceContextOf } from "@atelier/telemetry";
import { type Metadata, Server, ServerCredentials, type ServerUnaryCall, type sendUnaryData } from "@grpc/grpc-js";
import { HealthImplementation } from "grpc-health-check";
import type { Caller } from "../caller.ts";
import type { HostPort } from "../config.ts";
import type { Authenticator } from "../http/authentication.ts";
import type { GatewayMetrics, RequestEnded } from "../metrics.ts";
import type { Scope } from "../tenants/records.ts";
import type { CreateCall, GenerationService } from "./generation-service.ts";

export interface GrpcServerOptions {
  readonly service: GenerationService;
  readonly authenticator: Authenticator;
  readonly metrics: Pick<GatewayMetrics, "requestEnded">;
  readonly clock: Clock;
  readonly log: Pick<Logger, "info">;
  readonly bodyMaxBytes: number;
  /** Absent: it speaks in clear. */
  readonly tlsFiles?: TlsFiles | undefined;
  /** Logs a failure, reports it where it is a bug, and gives what a caller may read of it. */
  readonly noteFailure: (thrown: unknown, call: string) => ServingError;
}

/** The gateway's gRPC face: atelier.v1.Generation, health and reflection. Nothing is decided here but who may call. */
export class GrpcServer {
  readonly #options: GrpcServerOptions;
  readonly #server: Server;
  readonly #health = new HealthImplementation({ "": "SERVING", [Generation.typeName]: "SERVING" });
  #closed: Promise<void> | undefined;
  /** Of our own service, which a stop waits for; health is watched for as long as there is any. */
  #callsOpen = 0;

  constructor(options: GrpcServerOptions) {
    const { service } = options;
    this.#options = options;
    this.#server = new Server({
      ...channelOptions,
      "grpc.max_receive_message_length": options.bodyMaxBytes,
      // On one connection: far more than a caller has use for, as most of them would be refused.
      "grpc.max_concurrent_streams": 1_000,
    });
    this.#server.addService(serviceDefinition(Generation), {
      create: (call: CreateCall) => this.#scoped("Create", call, (span) => this.#create(call, span)),
      get: (
        call: ServerUnaryCall<GetGenerationRequest, GetGenerationResponse>,
        reply: sendUnaryData<GetGenerationResponse>,
      ) => this.#unary("Get", call, reply, (caller) => service.get(call, caller)),
      cancel: (
        call: ServerUnaryCall<CancelGenerationRequest, CancelGenerationResponse>,
        reply: sendUnaryData<CancelGenerationResponse>,
      ) => this.#unary("Cancel", call, reply, (caller) => service.cancel(call, caller)),
      listModels: (
        call: ServerUnaryCall<ListModelsRequest, ListModelsResponse>,
        reply: sendUnaryData<ListModelsResponse>,
      ) => this.#unary("ListModels", call, reply, (caller) => service.listModels(call, caller), "models"),
    });
    this.#health.addToServer(this.#server);
    reflectionOf([Generation]).addToServer(this.#server);
  }

  /** Resolves to the address, "host:port". @throws ConfigError saying what to change when it cannot be had. */
  async listen({ host, port }: HostPort): Promise<string> {
    const name = host.includes(":") ? `[${host}]` : host;
    const bound = await new Promise<number>((resolve, reject) => {
      const credentials = this.#options.tlsFiles?.serverCredentials() ?? ServerCredentials.createInsecure();
      this.#server.bindAsync(`${name}:${port}`, credentials, (error, boundPort) => {
        if (error === null) return resolve(boundPort);
        const message = `cannot listen for gRPC on ${name}:${port}; set ATELIER_GRPC_LISTEN to another address, or to off`;
        reject(new ConfigError(message, { cause: error }));
      });
    });
    return `${name}:${bound}`;
  }

  /** Takes no new calls, and resolves when those in flight have ended. */
  close(): Promise<void> {
    for (const service of ["", Generation.typeName]) this.#health.setStatus(service, "NOT_SERVING");
    this.#closed ??= new Promise((resolve) => this.#server.tryShutdown(() => resolve()));
    this.#closeWatches();
    return this.#closed;
  }

  #closeWatches(): void {
    if (this.#closed === undefined || this.#callsOpen > 0) return;
    this.#options.clock.after(LAST_BYTES_MS, () => this.#server.forceShutdown());
  }

  /** Ends what is still open. */
  forceClose(): void {
    this.#server.forceShutdown();
  }

  /** A call's lines in the log and its span, and its name sent back before anything else is. */
  #scoped(method: string, call: Scoped, run: (span: Span) => Promise<void>): void {
    const headers = headersOf(call.metadata);
    const requestId = requestIdOf({ "x-request-id": headers[REQUEST_ID_METADATA] });
    call.sendMetadata(metadataOf({ requestId }));
    const name = `${Generation.typeName}/${method}`;
    const attributes = {
      "rpc.system": "grpc",
      "rpc.service": Generation.typeName,
      "rpc.method": method,
      "atelier.request_id": requestId,
    };
    const span = startSpan(name, { kind: "server", attributes }, traceContextOf(headers));
    inScope({ fields: { request_id: requestId }, span }, () => void run(span));
  }

  async #create(call: CreateCall, span: Span): Promise<void> {
    const seen = nothingSeen();
    const note = this.#begin("Create", span, seen);
    try {
      const caller = await this.#authenticate(call.metadata);
      seen.caller = caller;
      await this.#options.service.create(call, caller, (outcome) => {
        seen.servedAs = outcome;
      });
      call.end();
      note(undefined);
    } catch (thrown) {
      call.emit("error", statusOf(note(thrown)));
    }
  }

  #unary<Reply>(
    method: string,
    call: Scoped,
    reply: sendUnaryData<Reply>,
    answer: (caller: Caller) => Promise<Reply>,
    scope?: Scope,
  ): void {
    this.#scoped(method, call, (span) => this.#answer({ method, span }, call, reply, answer, scope));
  }

  async #answer<Reply>(
    { method, span }: { readonly method: string; readonly span: Span },
    { metadata }: Scoped,
    reply: sendUnaryData<Reply>,
    answer: (caller: Caller) => Promise<Reply>,
    scope?: Scope,
  ): Promise<void> {
    const seen = nothingSeen();
    const note = this.#begin(method, span, seen);
    try {
      const caller = await this.#authenticate(metadata, scope);
      seen.caller = caller;
      const made = await answer(caller);
      note(undefined);
      reply(null, made);
    } catch (thrown) {
      reply(statusOf(note(thrown)), null);
    }
  }

  async #authenticate(metadata: Metadata, scope?: Scope): Promise<Caller> {
    const headers = Object.fromEntries(
      Object.entries(metadata.getMap()).map(([name, value]) => [name, value.toString()]),
    );
    const caller = await this.#options.authenticator.authenticate(headers, "user", scope);
    addLogFields({ tenant: caller.tenant });
    return caller;
  }

  /** Counts a call as requests are counted, by the status that it would have over HTTP. */
  #begin(
    method: string,
    span: Span,
    seen: Seen,
  ): <Thrown>(thrown: Thrown) => Thrown extends undefined ? undefined : ServingError {
    const { clock, metrics, noteFailure, log } = this.#options;
    const route = `${Generation.typeName}/${method}`;
    const startMs = clock.nowMs();
    this.#callsOpen += 1;
    return ((thrown: unknown) => {
      const error = thrown === undefined ? undefined : withRetryAfter(noteFailure(thrown, route));
      const status = error === undefined ? 200 : HTTP_STATUS[error.code];
      const durationMs = clock.nowMs() - startMs;
      metrics.requestEnded({ ...seen, route, method: "gRPC", status, durationMs });
      log.info({ method: "gRPC", route, status, duration_ms: durationMs }, "request");
      span.end();
      this.#callsOpen -= 1;
      this.#closeWatches();
      return error;
    }) as never;
  }
}

/** Of any of our calls. */
type Scoped = Pick<ServerUnaryCall<unknown, unknown>, "metadata" | "sendMetadata">;

/** What comes to light of a call while it lasts. */
interface Seen {
  caller: Caller | null;
  servedAs: RequestEnded["servedAs"];
}

function nothingSeen(): Seen {
  return { caller: null, servedAs: null };
}

/** For answers that were just given to leave. */
const LAST_BYTES_MS = 500;

/** What its kind suggests, where the failure itself does not know when to come back. */
function withRetryAfter(error: ServingError): ServingError {
  const seconds = retryAfterSeconds(error);
  if (seconds === undefined || error.retryAfterMs !== undefined) return error;
  const { code, detail, field, cause } = error;
  return new ServingError(code, detail, { field, cause, retryAfterMs: seconds * 1_000 });
}

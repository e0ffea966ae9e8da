import { type Clock, ConfigError, ServingError } from "@atelier/core";
import { HTTP_STATUS, retryAfterSeconds } from "@atelier/http";
import {
  type CancelGenerationRequest,
  type CancelGenerationResponse,
  Generation,
  type GetGenerationRequest,
  type GetGenerationResponse,
  type ListModelsRequest,
  type ListModelsResponse,
} from "@atelier/proto";
import { channelOptions, reflectionOf, serviceDefinition, statusOf, type TlsFiles } from "@atelier/rpc";
import { type Metadata, Server, ServerCredentials, type ServerUnaryCall, type sendUnaryData } from "@grpc/grpc-js";
import { HealthImplementation } from "grpc-health-check";
import type { Caller } from "../caller.ts";
import type { HostPort } from "../config.ts";
import type { Authenticator } from "../http/authentication.ts";
import type { GatewayMetrics } from "../metrics.ts";
import type { Scope } from "../tenants/records.ts";
import type { CreateCall, GenerationService } from "./generation-service.ts";

export interface GrpcServerOptions {
  readonly service: GenerationService;
  readonly authenticator: Authenticator;
  readonly metrics: Pick<GatewayMetrics, "requests" | "requestSeconds">;
  readonly clock: Clock;
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
      create: (call: CreateCall) => void this.#create(call),
      get: (
        call: ServerUnaryCall<GetGenerationRequest, GetGenerationResponse>,
        reply: sendUnaryData<GetGenerationResponse>,
      ) => void this.#unary("Get", call, reply, (caller) => service.get(call, caller)),
      cancel: (
        call: ServerUnaryCall<CancelGenerationRequest, CancelGenerationResponse>,
        reply: sendUnaryData<CancelGenerationResponse>,
      ) => void this.#unary("Cancel", call, reply, (caller) => service.cancel(call, caller)),
      listModels: (
        call: ServerUnaryCall<ListModelsRequest, ListModelsResponse>,
        reply: sendUnaryData<ListModelsResponse>,
      ) => void this.#unary("ListModels", call, reply, (caller) => service.listModels(call, caller), "models"),
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

  async #create(call: CreateCall): Promise<void> {
    const note = this.#begin("Create");
    try {
      const caller = await this.#authenticate(call.metadata);
      await this.#options.service.create(call, caller);
      call.end();
      note(undefined);
    } catch (thrown) {
      call.emit("error", statusOf(note(thrown)));
    }
  }

  async #unary<Reply>(
    method: string,
    { metadata }: { readonly metadata: Metadata },
    reply: sendUnaryData<Reply>,
    answer: (caller: Caller) => Promise<Reply>,
    scope?: Scope,
  ): Promise<void> {
    const note = this.#begin(method);
    try {
      const made = await answer(await this.#authenticate(metadata, scope));
      note(undefined);
      reply(null, made);
    } catch (thrown) {
      reply(statusOf(note(thrown)), null);
    }
  }

  #authenticate(metadata: Metadata, scope?: Scope): Promise<Caller> {
    const headers = Object.fromEntries(
      Object.entries(metadata.getMap()).map(([name, value]) => [name, value.toString()]),
    );
    return this.#options.authenticator.authenticate(headers, "user", scope);
  }

  /** Counts a call as requests are counted, by the status that it would have over HTTP. */
  #begin(method: string): <Thrown>(thrown: Thrown) => Thrown extends undefined ? undefined : ServingError {
    const { clock, metrics, noteFailure } = this.#options;
    const route = `${Generation.typeName}/${method}`;
    const startMs = clock.nowMs();
    this.#callsOpen += 1;
    return ((thrown: unknown) => {
      const error = thrown === undefined ? undefined : withRetryAfter(noteFailure(thrown, route));
      metrics.requests.inc({ route, method: "gRPC", status: error === undefined ? 200 : HTTP_STATUS[error.code] });
      metrics.requestSeconds.observe({ route }, (clock.nowMs() - startMs) / 1_000);
      this.#callsOpen -= 1;
      this.#closeWatches();
      return error;
    }) as never;
  }
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

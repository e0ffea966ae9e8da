import type { Readable } from "node:stream";
import swagger, { type SwaggerTransformObject } from "@fastify/swagger";
import type { FastifyInstance } from "fastify";
import { createJsonSchemaTransform, createJsonSchemaTransformObject } from "fastify-type-provider-zod";
import { z } from "zod";
import { errorBody } from "./error-reply.ts";
import { IDEMPOTENCY_HEADER } from "./idempotency-key.ts";
import { REQUEST_ID_HEADER } from "./request-id.ts";

const CONVENTIONS = `Every answer carries ${REQUEST_ID_HEADER}, and x-request-id beside it: the caller's X-Request-Id where it sent a plain one of up to 128 characters.
Every failure has the body {"error": {"code", "message", "field", "request_id"}}.`;

/** zod bounds every whole number by what a double holds exactly; said of each width, that is noise. */
const zodToJsonConfig: NonNullable<Parameters<typeof createJsonSchemaTransform>[0]["zodToJsonConfig"]> = {
  override: ({ jsonSchema }) => {
    if (jsonSchema.minimum === Number.MIN_SAFE_INTEGER) {
      delete jsonSchema.minimum;
      delete jsonSchema.maximum;
    }
  },
};

const transform = createJsonSchemaTransform({ zodToJsonConfig });

/** Any one of them will do. */
const SECURITY_SCHEMES = {
  bearer: { type: "http", scheme: "bearer", description: "An API key. None is asked for where none is configured." },
  apiKey: { type: "apiKey", in: "header", name: "x-api-key", description: "The same key." },
  basic: { type: "http", scheme: "basic", description: "The same key as the password; any user name." },
} as const;

const transformObject = createJsonSchemaTransformObject({ zodToJsonConfig });

/**
 * Collects the routes registered after it into an OpenAPI 3.1 document.
 *
 * @param description what the service does, in a sentence.
 */
export async function collectOpenApi(app: FastifyInstance, description: string): Promise<void> {
  await app.register(swagger, {
    openapi: {
      openapi: "3.1.0",
      info: {
        title: "Atelier",
        version: "0.1.0",
        description: `${description}\n\n${CONVENTIONS}`,
        license: { name: "Apache-2.0", identifier: "Apache-2.0" },
      },
      components: { securitySchemes: SECURITY_SCHEMES },
      security: Object.keys(SECURITY_SCHEMES).map((name) => ({ [name]: [] })),
    },
    transform: documentRoute,
    transformObject: completeDocument,
  });
}

/** What a route's config says of it, on top of its schema. */
interface RouteConfig {
  /** "public": nobody is asked for a key. */
  readonly access?: unknown;
  /** Heeds idempotency-key. */
  readonly idempotent?: unknown;
}

const documentRoute: typeof transform = (route) => {
  const { access, idempotent = false } = (route.route.config ?? {}) as RouteConfig;
  if (access === "public") {
    const transformed = transform(route);
    return { ...transformed, schema: { ...transformed.schema, security: [] } };
  }
  // Whatever else a route documents, it may refuse a key.
  const response = { ...errorResponses(401, 403), ...(route.schema?.response as object | undefined) };
  const transformed = transform({ ...route, schema: { ...route.schema, response } });
  if (idempotent === false) return transformed;
  return { ...transformed, schema: { ...transformed.schema, headers: idempotencyHeader } };
};

const idempotencyHeader = {
  type: "object",
  properties: {
    [IDEMPOTENCY_HEADER]: {
      type: "string",
      minLength: 1,
      maxLength: 255,
      description:
        "However often the request is sent under one key within 24 hours, it is answered once, and that answer given again with idempotency-replayed: true. Refusals and failures are not kept.",
    },
  },
};

/** GET /openapi.json. @param complete adds what other servers document, answered here. */
export function openApiRoute(
  app: FastifyInstance,
  complete: (document: object) => Promise<object> = async (document) => document,
): void {
  const schema = {
    operationId: "openapi",
    summary: "This document",
    response: { 200: z.looseObject({ openapi: z.string() }).meta({ description: "OpenAPI 3.1." }) },
  };
  app.get("/openapi.json", { schema, config: { access: "public" } }, async () => complete(app.swagger()));
}

/** A status, and what it says of this route where that is more than it says of any. */
export type DocumentedFailure = number | readonly [status: number, description: string];

/** The documented failures of a route. */
export function errorResponses(...failures: readonly DocumentedFailure[]) {
  return failuresAs(errorBody, ...failures);
}

/** The documented failures of a route whose dialect has a schema of its own for them. */
export function failuresAs<Schema extends z.ZodType>(schema: Schema, ...failures: readonly DocumentedFailure[]) {
  const entries = failures.map((failure) => {
    const [status, said] = typeof failure === "number" ? [failure] : failure;
    const description = said ?? FAILURES[status] ?? "The request failed.";
    return [status, { description, content: { "application/json": { schema } } }];
  });
  return Object.fromEntries(entries) as Record<
    number,
    { description: string; content: Record<string, { schema: Schema }> }
  >;
}

/** Documented as text and sent as a Buffer, which fastify passes on untouched: a serializer would write JSON. */
export const sentAsBytes = z.string().meta({ format: "binary" }) as z.ZodType as z.ZodType<Buffer>;

/** Documented as what it holds and sent as JSON that is written already, which fastify passes on untouched. */
export const sentAsWritten = (schema: z.ZodType) => schema as z.ZodType<unknown>;

/** Documented as its events and sent as a stream of text, which fastify passes on untouched. */
export const sentAsStream = (event: z.ZodType) => event as z.ZodType as z.ZodType<Readable>;

const FAILURES: Record<number, string> = {
  400: "A field is missing, unknown, of the wrong type or outside its limits.",
  401: "There is no key, or it is unknown, expired or revoked.",
  403: "The key does not allow this.",
  404: "No such model, or no such route.",
  406: "The Accept header rules out every kind of answer.",
  409: "The same request is still in progress under this idempotency key. Retry-After says when to come back.",
  413: "The body is too large.",
  415: "The body is not application/json.",
  422: "The idempotency key was used for another request.",
  429: "More than the key's own limits allow. Retry-After says when to come back.",
  500: "An error on our side.",
  502: "The worker was lost while it made the picture. The request can be sent again.",
  503: "No worker is ready, too much is in flight, or this gateway is stopping. Retry-After says when to come back.",
  504: "The picture was not finished in time.",
  507: "The device has not enough memory for this request.",
};

const RATE_HEADERS = {
  ratelimit: {
    description: "How the tenant's rate limits stand, where it has any, as in draft-ietf-httpapi-ratelimit-headers.",
    schema: { type: "string" },
  },
  "ratelimit-policy": { description: "What they are.", schema: { type: "string" } },
};

const completeDocument: SwaggerTransformObject = (document) => {
  const object = transformObject(document) as OpenApiObject;
  keepReferencedSchemas(object);
  for (const operation of Object.values(object.paths ?? {}).flatMap((path) => Object.values(path))) {
    const limited = "429" in (operation.responses ?? {});
    for (const [status, response] of Object.entries(operation.responses ?? {})) {
      response.headers = {
        [REQUEST_ID_HEADER]: { description: "Names the request in our logs.", schema: { type: "string" } },
        ...(["409", "429", "503"].includes(status) && {
          "retry-after": { description: "Seconds.", schema: { type: "integer" } },
        }),
        ...(limited && (status === "429" || status.startsWith("2")) && RATE_HEADERS),
        ...(status === "401" && {
          "www-authenticate": { description: "Bearer.", schema: { type: "string" } },
        }),
      };
    }
  }
  return object as ReturnType<SwaggerTransformObject>;
};

/** Every named schema comes twice, as input and as output, though most are used one way only. */
function keepReferencedSchemas(object: OpenApiObject): void {
  const schemas = object.components?.schemas ?? {};
  const reached = new Set<string>();
  const visit = (part: unknown) => {
    for (const [, name] of JSON.stringify(part).matchAll(/"#\/components\/schemas\/([^"]+)"/g)) {
      if (reached.has(name!)) continue;
      reached.add(name!);
      visit(schemas[name!]);
    }
  };
  visit(object.paths ?? {});
  for (const name of Object.keys(schemas)) if (!reached.has(name)) delete schemas[name];
}

/** As much of the document as is written to here. */
interface OpenApiObject {
  paths?: Record<string, Record<string, { responses?: Record<string, { headers?: object }> }>>;
  components?: { schemas?: Record<string, unknown> };
}

import { Validator } from "@seriousme/openapi-schema-validator";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { startGateway, type TestGateway } from "../testing/start-gateway.ts";

describe("GET /openapi.json", () => {
  let gateway: TestGateway;
  let document: OpenApi;

  beforeAll(async () => {
    gateway = await startGateway([]);
    document = (await (await fetch(`${gateway.url}/openapi.json`)).json()) as OpenApi;
  });
  afterAll(() => gateway.stop());

  it("is valid OpenAPI 3.1, every reference in it leading somewhere", async () => {
    const validator = new Validator();
    expect(await validator.validate(structuredClone(document) as unknown as Record<string, unknown>)).toEqual({
      valid: true,
    });
    expect(validator.version).toBe("3.1");
    const names = Array.from(
      JSON.stringify(document).matchAll(/"#\/components\/schemas\/([^"]+)"/g),
      ([, name]) => name!,
    );
    expect(new Set(names)).toEqual(new Set(Object.keys(document.components.schemas)));
  });

  it("holds every route that answers", () => {
    const routes = Object.entries(document.paths).flatMap(([path, methods]) =>
      Object.keys(methods).map((method) => `${method} ${path}`),
    );
    expect(routes).toContain("post /generate");
    for (const route of routes) {
      const [method, path] = route.split(" ") as [string, string];
      const url = path.replaceAll(/\{(\w+)\}/g, ":$1");
      expect(gateway.app.hasRoute({ method: method.toUpperCase() as "GET", url }), route).toBe(true);
    }
    // What fastify itself lists, but for the HEAD that comes with each GET.
    const printed = gateway.app.printRoutes({ commonPrefix: false }).matchAll(/\(([A-Z, ]+)\)/g);
    const listed = [...printed].flatMap(([, methods]) => methods!.split(", ")).filter((method) => method !== "HEAD");
    expect(listed).toHaveLength(routes.length + STREAMED + INTERNAL);
  });

  it("lists the fields of a request, with types, limits and defaults, and allows no others", () => {
    const { properties, required, additionalProperties } = document.components.schemas["GenerateInput"]!;
    expect(required).toEqual(["prompt"]);
    expect(additionalProperties).toBe(false);
    expect(Object.keys(properties)).toEqual([
      "prompt",
      "negative_prompt",
      "width",
      "height",
      "steps",
      "seed",
      "guidance_scale",
      "sampler",
      "model",
      "format",
      "quality",
      "num_images",
      "init_image",
      "strength",
      "preview_every",
    ]);
    expect(properties).toMatchObject({
      negative_prompt: { type: "string", default: "低分辨率, 模糊" },
      width: { type: "integer", default: 512 },
      height: { type: "integer", default: 512 },
      steps: { type: "integer", default: 25, minimum: 1, maximum: 150 },
      seed: { type: "integer", minimum: 0, maximum: 2 ** 53 - 1 },
      num_images: { type: "integer", default: 1, minimum: 1, maximum: 8 },
      format: { enum: ["png", "jpeg", "webp"] },
      strength: { type: "number", exclusiveMinimum: 0, maximum: 1 },
    });
    expect(properties["width"]).not.toHaveProperty("minimum");
  });

  it("describes each event of a generation by its name and its data", () => {
    const { oneOf } = document.components.schemas["GenerateEvent"] as unknown as { oneOf: EventSchema[] };
    const events = oneOf.map(({ properties: { event, data } }) => [event.const, data.$ref.split("/").at(-1)]);
    expect(events).toEqual([
      ["accepted", "AcceptedEvent"],
      ["progress", "ProgressEvent"],
      ["preview", "PreviewEvent"],
      ["completed", "GenerateReply"],
      ["error", "Error"],
    ]);
  });

  it("describes OpenAI's routes in OpenAI's schemas, failures included, and an edit as a form", () => {
    const schemaOf = (content: object) =>
      Object.values(content as Record<string, { schema: { $ref: string } }>).map(({ schema }) =>
        schema.$ref.split("/").at(-1),
      );
    for (const [path, type] of [
      ["/v1/images/generations", "application/json"],
      ["/v1/images/edits", "multipart/form-data"],
    ] as const) {
      const { requestBody, responses, parameters } = document.paths[path]!["post"]!;
      expect(Object.keys(requestBody!.content)).toEqual([type]);
      expect(schemaOf(responses["200"]!.content)).toEqual(["OpenAiImages", "OpenAiEvent"]);
      for (const status of ["400", "401", "403", "404", "413", "429", "503"]) {
        expect(schemaOf(responses[status]!.content), status).toEqual(["OpenAiError"]);
      }
      expect(parameters).toMatchObject([{ in: "header", name: "idempotency-key" }]);
    }
    expect(schemaOf(document.paths["/v1/models/{id}"]!["get"]!.responses["404"]!.content)).toEqual(["OpenAiError"]);
    expect(document.components.schemas["OpenAiImageEditInput"]!.properties["image"]).toMatchObject({
      format: "binary",
    });
  });

  it("asks for a key on every route but those that are open", () => {
    expect(document.security).toEqual([{ bearer: [] }, { apiKey: [] }, { basic: [] }]);
    expect(Object.keys(document.components.securitySchemes)).toEqual(["bearer", "apiKey", "basic"]);
    const open = Object.entries(document.paths).flatMap(([path, methods]) =>
      Object.values(methods).some(({ security }) => security?.length === 0) ? [path] : [],
    );
    expect(open.sort()).toEqual(["/healthz", "/metrics", "/openapi.json", "/readyz"]);
    for (const [path, methods] of Object.entries(document.paths)) {
      for (const { responses } of Object.values(methods)) {
        if (!open.includes(path)) expect(Object.keys(responses), path).toEqual(expect.arrayContaining(["401", "403"]));
      }
    }
  });

  it("documents the idempotency key of the routes that heed one", () => {
    const headers = (path: string, method: string) =>
      (document.paths[path]![method]!.parameters ?? []).filter((parameter) => parameter.in === "header");
    expect(headers("/generate", "post").map(({ name }) => name)).toEqual(["idempotency-key"]);
    expect(headers("/v1/models", "get")).toEqual([]);
  });

  it("documents the picture as bytes, the refusals, and the header on every answer", () => {
    const { responses } = document.paths["/generate"]!["post"]!;
    expect(Object.keys(responses["200"]!.content)).toEqual([
      "application/json",
      "image/png",
      "image/jpeg",
      "image/webp",
      "text/event-stream",
    ]);
    expect(Object.keys(responses)).toEqual([
      "200",
      "400",
      "401",
      "403",
      "404",
      "406",
      "409",
      "413",
      "415",
      "422",
      "429",
      "500",
      "502",
      "503",
      "504",
      "507",
    ]);
    expect(responses["503"]!.headers).toHaveProperty("retry-after");
    for (const status of ["200", "429"]) expect(responses[status]!.headers).toHaveProperty("ratelimit");
    expect(responses["400"]!.headers).not.toHaveProperty("ratelimit");
    for (const response of Object.values(responses)) expect(response.headers).toHaveProperty("x-atelier-request-id");
  });
});

/** Paths of bulk jobs with five methods each, which the jobs service documents; and what only that service asks. */
const STREAMED = 8 * 5;
const INTERNAL = 2;

interface EventSchema {
  properties: { event: { const: string }; data: { $ref: string } };
}

interface OpenApi {
  security: object[];
  paths: Record<
    string,
    Record<
      string,
      {
        security?: object[];
        parameters?: { in: string; name: string }[];
        requestBody?: { content: object };
        responses: Record<string, { content: object; headers: object }>;
      }
    >
  >;
  components: {
    securitySchemes: object;
    schemas: Record<string, { properties: Record<string, object>; required: string[]; additionalProperties?: boolean }>;
  };
}

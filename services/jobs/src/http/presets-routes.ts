import { errorResponses, type HttpApp } from "@atelier/http";
import { z } from "zod";
import { presetSchema, type TenantPresets } from "../intake/index.ts";
import { callerOf } from "./caller-of.ts";

/** A tenant's presets: what goes around the prompts of a template, under a name. */
export function presetsRoutes(app: HttpApp, { presets }: { readonly presets: TenantPresets }): void {
  app.get("/v1/presets", { schema: listSchema }, async (request) => ({
    presets: [...(await presets.list(callerOf(request).tenant))],
  }));
  app.get("/v1/presets/:name", { schema: oneSchema }, (request) =>
    presets.get(callerOf(request).tenant, request.params.name),
  );
  app.put("/v1/presets/:name", { schema: putSchema }, (request) =>
    presets.put(callerOf(request).tenant, request.params.name, request.body),
  );
  app.delete("/v1/presets/:name", { schema: removeSchema }, async (request, reply) => {
    await presets.remove(callerOf(request).tenant, request.params.name);
    return reply.code(204).send(null);
  });
}

const tags = ["presets"];
const params = z.strictObject({ name: z.string().min(1).max(64) });
const preset = presetSchema.extend({ name: z.string() }).meta({ id: "JobPreset" });
const notFound = [404, "The tenant has no such preset."] as const;

const listSchema = {
  tags,
  operationId: "listPresets",
  summary: "The tenant's presets, by name",
  response: { 200: z.object({ presets: z.array(preset) }).meta({ id: "JobPresets" }), ...errorResponses(503) },
};
const oneSchema = {
  tags,
  operationId: "getPreset",
  summary: "A preset",
  params,
  response: { 200: preset, ...errorResponses(notFound, 503) },
};
const putSchema = {
  tags,
  operationId: "putPreset",
  summary: "Makes a preset, or replaces it; jobs that were submitted stay as they are",
  params,
  body: presetSchema.meta({ id: "JobPresetBody" }),
  response: { 200: preset, ...errorResponses(400, 503) },
};
const removeSchema = {
  tags,
  operationId: "deletePreset",
  summary: "Deletes a preset",
  params,
  response: { 204: z.null().meta({ description: "It is gone." }), ...errorResponses(notFound, 503) },
};

import { ServingError } from "@atelier/core";
import { failuresAs, showValue } from "@atelier/http";
import { z } from "zod";
import type { GatewayApp } from "../app.ts";
import type { CatalogModel } from "../catalog.ts";
import { openAiError, sharedError, wordAsOpenAi, wordForBoth } from "../dialects/openai-errors.ts";
import { openAiModel, openAiModels } from "../dialects/openai-models.ts";
import type { Fleet } from "../fleet/fleet.ts";
import { PLACE_STATUSES } from "../fleet/worker-view.ts";
import type { ModelAliases } from "../model-aliases.ts";
import { SAMPLER_NAMES } from "../samplers.ts";
import { catalogFor } from "../tenants/allow-lists.ts";

export interface ModelsRouteOptions {
  readonly fleet: Pick<Fleet, "views">;
  readonly aliases: Pick<ModelAliases, "namesIn">;
}

/** GET /v1/models: what the fleet offers, as its workers last said; for our own clients and for OpenAI's in one answer. */
export function modelsRoutes(app: GatewayApp, { fleet, aliases }: ModelsRouteOptions): void {
  const list = {
    operationId: "listModels",
    summary: "The models that the caller may use, with their limits and defaults",
    response: { 200: modelList, ...failuresAs(sharedError, 401, 403, 500, 503) },
  };
  app.get("/v1/models", { schema: list, config: { scope: "models", wordFailure: wordForBoth } }, async ({ caller }) => {
    const catalog = catalogFor(caller, fleet.views());
    return { object: "list" as const, data: openAiModels(catalog, aliases), models: catalog.map(modelToJson) };
  });

  const read = {
    operationId: "getOpenAiModel",
    summary: "A model, as OpenAI's API has it",
    params: z.object({ id: z.string() }),
    response: { 200: openAiModel, ...failuresAs(openAiError, 401, 403, 404, 500, 503) },
  };
  app.get(
    "/v1/models/:id",
    { schema: read, config: { scope: "models", wordFailure: wordAsOpenAi } },
    async (request) => {
      const { id } = request.params;
      const all = openAiModels(catalogFor(request.caller, fleet.views()), aliases);
      const found = all.find((model) => model.id === id);
      if (found !== undefined) return found;
      const known = all.map((model) => model.id).join(", ") || "none";
      const message = `model ${showValue(id)} is not served here; known models: ${known}`;
      throw new ServingError("MODEL_NOT_FOUND", message, { field: "model" });
    },
  );
}

const modelList = z
  .object({
    object: z.literal("list"),
    data: z.array(openAiModel).describe("The same models and their other names, as OpenAI's clients read them."),
    models: z.array(
      z.object({
        id: z.string().describe("What a request names."),
        name: z.string(),
        family: z.string(),
        license: z.string(),
        digest: z.string(),
        native_width: z.int(),
        native_height: z.int(),
        limits: z.object({
          size_min: z.int(),
          size_max: z.int(),
          size_multiple: z.int(),
          pixels_max: z.int(),
          steps_max: z.int(),
          num_images_max: z.int(),
        }),
        defaults: z.object({
          width: z.int(),
          height: z.int(),
          steps: z.int(),
          guidance_scale: z.number(),
          sampler: z.enum(SAMPLER_NAMES),
        }),
        status: z
          .enum(PLACE_STATUSES)
          .describe("The best place that it has on any ready worker; a request of one on disk waits for its load."),
        progress: z.number().describe("Of its load, 0..1; 1 where it is resident."),
        weights_bytes: z.int().describe("What its weights are counted with in a worker's memory."),
        workers_ready: z.int().describe("Workers that would take a request for it now."),
      }),
    ),
  })
  .meta({ id: "ModelList", description: "Every model that the fleet is known to have, in memory or on disk." });

function modelToJson({ limits, defaults, ...model }: CatalogModel) {
  return {
    id: model.id,
    name: model.name,
    family: model.family,
    license: model.license,
    digest: model.digest,
    native_width: defaults.nativeWidth,
    native_height: defaults.nativeHeight,
    limits: {
      size_min: limits.sizeMin,
      size_max: limits.sizeMax,
      size_multiple: limits.sizeMultiple,
      pixels_max: limits.pixelsMax,
      steps_max: limits.stepsMax,
      num_images_max: limits.numImagesMax,
    },
    defaults: {
      width: defaults.width,
      height: defaults.height,
      steps: defaults.steps,
      guidance_scale: defaults.guidanceScale,
      sampler: defaults.sampler,
    },
    status: model.place.status,
    progress: model.place.progress,
    weights_bytes: model.place.weightsBytes,
    workers_ready: model.workersReady,
  };
}

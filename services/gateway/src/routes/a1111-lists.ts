import { failuresAs, showValue } from "@atelier/http";
import { z } from "zod";
import type { GatewayApp } from "../app.ts";
import type { Caller } from "../caller.ts";
import type { CatalogModel } from "../catalog.ts";
import { checkpointTitle, digestHex, modelNamed, shortHash } from "../dialects/a1111.ts";
import { a1111Error, wordAsA1111 } from "../dialects/a1111-errors.ts";
import { refused } from "../dialects/a1111-fields.ts";
import { A1111_SAMPLERS, A1111_SCHEDULERS } from "../dialects/a1111-samplers.ts";
import type { Fleet } from "../fleet/fleet.ts";
import { catalogFor } from "../tenants/allow-lists.ts";

interface ListOptions {
  readonly fleet: Pick<Fleet, "views">;
}

const config = { scope: "models" as const, wordFailure: wordAsA1111 };
const failures = failuresAs(a1111Error, 401, 403, 500, 503);
const anything = z.unknown();

const NOT_TOLD = { error: "workers have their own memory: see GET /metrics" };

/** What there is none of, or nothing to tell about. */
const FIXED: Readonly<Record<string, { readonly summary: string; readonly value: unknown }>> = {
  schedulers: {
    summary: "Spacings of the noise levels",
    value: A1111_SCHEDULERS.map((one) => ({ ...one, aliases: null })),
  },
  "sd-vae": { summary: "None: a model has its own", value: [] },
  upscalers: {
    summary: "None but to do without",
    value: [{ name: "None", model_name: null, model_path: null, model_url: null, scale: 1 }],
  },
  "latent-upscale-modes": { summary: "None", value: [] },
  loras: { summary: "Adapters: none is served", value: [] },
  embeddings: { summary: "None", value: { loaded: {}, skipped: {} } },
  hypernetworks: { summary: "None", value: [] },
  "face-restorers": { summary: "None", value: [] },
  "realesrgan-models": { summary: "None", value: [] },
  "prompt-styles": { summary: "None", value: [] },
  scripts: { summary: "None", value: { txt2img: [], img2img: [] } },
  "script-info": { summary: "None", value: [] },
  extensions: { summary: "None", value: [] },
  "cmd-flags": { summary: "That there is an API", value: { api: true, nowebui: true } },
  memory: { summary: "Not told here", value: { ram: NOT_TOLD, cuda: NOT_TOLD } },
};

/** The lists that clients fill their menus from, and the server's options, none of which can be changed. */
export function a1111ListRoutes(app: GatewayApp, { fleet }: ListOptions): void {
  const modelsOf = (caller: Caller) => catalogFor(caller, fleet.views());
  const list = (path: string, summary: string, value: (caller: Caller) => unknown) => {
    const schema = { operationId: operationOf("get", path), summary, response: { 200: anything, ...failures } };
    app.get(`/sdapi/v1/${path}`, { schema, config }, async (request, reply) =>
      reply.type("application/json; charset=utf-8").send(JSON.stringify(value(request.caller))),
    );
  };
  for (const [path, { summary, value }] of Object.entries(FIXED)) list(path, summary, () => value);
  list("samplers", "Samplers", () =>
    Object.values(A1111_SAMPLERS).map(({ name, aliases }) => ({ name, aliases, options: {} })),
  );
  list("sd-models", "The models that the caller may use", (caller) => modelsOf(caller).map(modelToA1111));
  list("options", "Settings of the server", (caller) => optionsOf(modelsOf(caller)[0]));

  const options = {
    operationId: operationOf("set", "options"),
    summary: "Accepts what changes nothing; a call has its own model in override_settings",
    body: z.record(z.string(), z.unknown()),
    response: { 200: z.null(), ...failuresAs(a1111Error, 401, 403, 413, 415, 422, 500, 503) },
  };
  app.post("/sdapi/v1/options", { schema: options, config }, async ({ caller, body }) => {
    checkUnchanged(body, modelsOf(caller));
    return null;
  });
  for (const path of ["refresh-checkpoints", "refresh-loras", "refresh-vae"]) {
    const schema = {
      operationId: operationOf("do", path),
      summary: "Does nothing: the lists are always up to date",
      response: { 200: z.null(), ...failures },
    };
    app.post(`/sdapi/v1/${path}`, { schema, config }, async () => null);
  }
}

function modelToA1111({ id, digest, ...model }: CatalogModel) {
  const title = checkpointTitle({ id, digest });
  return {
    title,
    model_name: id,
    hash: shortHash(digest),
    sha256: digestHex(digest),
    filename: id,
    config: null,
    name: model.name,
  };
}

/** Those that clients look at. */
function optionsOf(first: CatalogModel | undefined): Readonly<Record<string, unknown>> {
  return {
    sd_model_checkpoint: first === undefined ? null : checkpointTitle(first),
    sd_checkpoint_hash: first === undefined ? null : digestHex(first.digest),
    sd_vae: "Automatic",
    CLIP_stop_at_last_layers: 1,
    samples_format: "png",
    eta_noise_seed_delta: 0,
  };
}

/** Options are one server's there; here they would be everybody's. @throws ServingError INVALID_REQUEST. */
function checkUnchanged(asked: Readonly<Record<string, unknown>>, models: readonly CatalogModel[]): void {
  const options = optionsOf(models[0]);
  for (const [name, value] of Object.entries(asked)) {
    if (!Object.hasOwn(options, name)) throw refused(name, "is no option here");
    if (value === options[name]) continue;
    if (name !== "sd_model_checkpoint")
      throw refused(name, `is ${showValue(value)}; it stays ${showValue(options[name])}`);
    if (typeof value === "string" && modelNamed(value, models) === models[0]?.id) continue;
    const complaint = `is ${showValue(value)}; it stays ${showValue(options[name])} for everybody: name a model in a call's override_settings`;
    throw refused(name, complaint);
  }
}

/** sd-models: a1111GetSdModels. */
function operationOf(verb: string, path: string): string {
  const words = [verb, ...path.split("-")].map((word) => word[0]!.toUpperCase() + word.slice(1));
  return `a1111${words.join("")}`;
}

import { ServingError } from "@atelier/core";
import { readStrictly } from "@atelier/http";
import type { Records } from "@atelier/job-queue";
import { type NamedPreset, PRESET_NAME, presetSchema } from "./options.ts";
import { tenantPart } from "./record-key.ts";
import type { TenantPresets } from "./submission.ts";

/** Of one tenant: enough for every brand and season, and little to list. */
const PRESETS_MAX = 500;

/** Presets as records `presets.<tenant>.<name>`. */
export class Presets implements TenantPresets {
  readonly #records: Records;

  constructor(records: Records) {
    this.#records = records;
  }

  async list(tenant: string): Promise<readonly NamedPreset[]> {
    const presets: NamedPreset[] = [];
    for await (const { key, value } of this.#records.list(prefixOf(tenant))) {
      presets.push(presetOf(key.slice(prefixOf(tenant).length), value));
    }
    return presets.sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  async get(tenant: string, name: string): Promise<NamedPreset> {
    const kept = await this.#records.get(keyOf(tenant, name));
    if (kept === undefined) throw notFound(name);
    return presetOf(name, kept.value);
  }

  async put(tenant: string, name: string, body: unknown): Promise<NamedPreset> {
    const key = keyOf(tenant, name);
    const preset = readStrictly(presetSchema, body);
    if ((await this.#records.get(key)) === undefined && (await this.list(tenant)).length >= PRESETS_MAX) {
      const message = `there are ${PRESETS_MAX} presets already, which is all that a tenant may have`;
      throw new ServingError("CONFLICT", message, { field: "name" });
    }
    await this.#records.put(key, JSON.stringify(preset));
    return { name, ...preset };
  }

  async remove(tenant: string, name: string): Promise<void> {
    const key = keyOf(tenant, name);
    if ((await this.#records.get(key)) === undefined) throw notFound(name);
    await this.#records.remove(key);
  }

  /** Those that a template names or writes out. @throws ServingError INVALID_REQUEST naming one that is not there. */
  async ofTemplate(tenant: string, named: readonly (string | NamedPreset)[]): Promise<readonly NamedPreset[]> {
    const presets: NamedPreset[] = [];
    for (const [i, preset] of named.entries()) {
      const found = typeof preset === "string" ? await this.#named(tenant, preset, `template.presets[${i}]`) : preset;
      if (presets.some(({ name }) => name === found.name)) {
        const message = `template.presets names ${JSON.stringify(found.name)} twice`;
        throw new ServingError("INVALID_REQUEST", message, { field: `template.presets[${i}]` });
      }
      presets.push(found);
    }
    return presets;
  }

  async #named(tenant: string, name: string, field: string): Promise<NamedPreset> {
    const kept = await this.#records.get(keyOf(tenant, name));
    if (kept !== undefined) return presetOf(name, kept.value);
    const known = (await this.list(tenant)).slice(0, 20).map((preset) => JSON.stringify(preset.name));
    const listed = known.length === 0 ? "there are no presets" : `the presets are ${known.join(", ")}`;
    throw new ServingError("INVALID_REQUEST", `${field} is ${JSON.stringify(name)}; ${listed}`, { field });
  }
}

function prefixOf(tenant: string): string {
  return `presets.${tenantPart(tenant)}.`;
}

/** @throws ServingError INVALID_REQUEST. */
function keyOf(tenant: string, name: string): string {
  if (PRESET_NAME.test(name)) return prefixOf(tenant) + name;
  const shown = JSON.stringify(name.slice(0, 80));
  const message = `a preset's name is 1 to 64 letters, digits, - and _: got ${shown}`;
  throw new ServingError("INVALID_REQUEST", message, { field: "name" });
}

function presetOf(name: string, value: string): NamedPreset {
  try {
    return { name, ...presetSchema.parse(JSON.parse(value)) };
  } catch (error) {
    throw new ServingError("STORAGE_UNAVAILABLE", `preset ${name} is damaged where it is kept`, { cause: error });
  }
}

function notFound(name: string): ServingError {
  return new ServingError("NOT_FOUND", `there is no preset ${JSON.stringify(name.slice(0, 80))}`, { field: "name" });
}

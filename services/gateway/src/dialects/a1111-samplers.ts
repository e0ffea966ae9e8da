import { KARRAS_SAMPLERS, type SamplerName } from "../samplers.ts";
import { refused } from "./a1111-fields.ts";

/** Our samplers as AUTOMATIC1111's web UI names them, with the other names that it takes. */
export const A1111_SAMPLERS: Readonly<Record<SamplerName, { readonly name: string; readonly aliases: string[] }>> = {
  dpmpp_2m: { name: "DPM++ 2M", aliases: ["k_dpmpp_2m"] },
  dpmpp_2m_sde: { name: "DPM++ 2M SDE", aliases: ["k_dpmpp_2m_sde"] },
  euler: { name: "Euler", aliases: ["k_euler"] },
  euler_a: { name: "Euler a", aliases: ["k_euler_a", "k_euler_ancestral"] },
  ddim: { name: "DDIM", aliases: ["ddim"] },
  unipc: { name: "UniPC", aliases: ["unipc"] },
  lcm: { name: "LCM", aliases: ["k_lcm"] },
};

/** Automatic is the model's own schedule. */
export const A1111_SCHEDULERS = [
  { name: "automatic", label: "Automatic" },
  { name: "karras", label: "Karras" },
] as const;

const DEFAULT = "Euler";
const KARRAS_SUFFIX = " karras";

interface Spoken {
  readonly sampler_name?: string | null | undefined;
  readonly sampler_index?: string | null | undefined;
  readonly scheduler?: string | null | undefined;
}

/**
 * The sampler and its spacing; older clients say both at once, as in "DPM++ 2M Karras".
 *
 * @throws ServingError INVALID_REQUEST naming the field, and what there is.
 */
export function samplerOf(body: Spoken): { sampler: SamplerName; karrasSigmas: boolean } {
  const { sampler_name: name, sampler_index: index, scheduler } = body;
  const field = name ? "sampler_name" : "sampler_index";
  const spoken = name || index || DEFAULT;
  const lower = spoken.toLowerCase();
  const suffixed = lower.endsWith(KARRAS_SUFFIX);
  const sampler = namedSampler(suffixed ? lower.slice(0, -KARRAS_SUFFIX.length) : lower);
  if (sampler === undefined) {
    throw refused(field, `is ${JSON.stringify(spoken.slice(0, 60))}; it must be one of ${names(samplerNames())}`);
  }
  const karrasSigmas = isKarras(scheduler) || suffixed;
  if (karrasSigmas && !KARRAS_SAMPLERS.includes(sampler)) {
    const { name: asNamed } = A1111_SAMPLERS[sampler];
    const others = names(KARRAS_SAMPLERS.map((one) => A1111_SAMPLERS[one].name));
    throw refused(suffixed ? field : "scheduler", `asks for Karras, which ${asNamed} does not have; ${others} do`);
  }
  return { sampler, karrasSigmas };
}

/** The noise that a sampler puts back at each step; those that are not here put back none, and take no notice. */
const ETA: Partial<Record<SamplerName, number>> = { euler_a: 1, dpmpp_2m_sde: 1, ddim: 0 };

/** Whether eta was said for nothing. @throws ServingError INVALID_REQUEST where it would change the picture. */
export function etaIgnored(eta: number | null | undefined, sampler: SamplerName): boolean {
  if (eta === undefined || eta === null) return false;
  const own = ETA[sampler];
  if (own === undefined) return true;
  if (eta === own) return false;
  throw refused("eta", `is ${eta}; ${A1111_SAMPLERS[sampler].name} is served with ${own}: leave it out or send that`);
}

function namedSampler(lower: string): SamplerName | undefined {
  const all = Object.entries(A1111_SAMPLERS) as [SamplerName, { name: string; aliases: string[] }][];
  return all.find(([, { name, aliases }]) => name.toLowerCase() === lower || aliases.includes(lower))?.[0];
}

function isKarras(scheduler: string | null | undefined): boolean {
  const lower = (scheduler || "automatic").toLowerCase();
  if (A1111_SCHEDULERS.some(({ name }) => name === lower)) return lower === "karras";
  const labels = names(A1111_SCHEDULERS.map(({ label }) => label));
  throw refused("scheduler", `is ${JSON.stringify(scheduler?.slice(0, 60))}; it must be one of ${labels}`);
}

const samplerNames = () => Object.values(A1111_SAMPLERS).map(({ name }) => name);
const names = (list: readonly string[]) => list.join(", ");
